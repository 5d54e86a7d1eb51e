// What is driven through every provider of the AI SDK.
import { Output, generateText, jsonSchema, streamText, tool } from 'ai';
import { z } from 'zod';
import { ASK, LENGTH, LONG, PLACE, SEED, drives, generated, inPlace, isDish, same } from './common.mjs';

const dish = z.object({ vegan: z.boolean(), course: z.enum(['soup', 'salad', 'cake']) });
const weather = tool({ description: 'Weather of a city.', inputSchema: jsonSchema(PLACE) });

/** Drives a model; `named` begins the names of the checks. */
export function driveModel(named, model, options = {}) {
  const say = { model, prompt: ASK[0].content, maxOutputTokens: LENGTH, seed: SEED, maxRetries: 0, ...options };
  drives(`${named}: text`, async () => {
    const { text } = await generateText(say);
    same(text, await generated());
  });
  drives('streams', async () => {
    let text = '';
    for await (const part of streamText(say).textStream) text += part;
    same(text, await generated());
  });
  drives('objects', async () => {
    const { output } = await generateText({ ...say, maxOutputTokens: LONG, output: Output.object({ schema: dish }) });
    isDish(output);
  });
  drives('tools', async () => {
    const { toolCalls } = await generateText({ ...say, maxOutputTokens: LONG, tools: { weather }, toolChoice: 'required' });
    same([toolCalls[0].toolName, inPlace(toolCalls[0].input.city)], ['weather', true]);
  });
}
