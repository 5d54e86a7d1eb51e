import OpenAI from 'openai';
import { ASK, KEY, LENGTH, LONG, MODEL, PLACE, SCHEMA, SEED, URL, drives, generated, inPlace, isDish, main, same } from './common.mjs';

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, maxRetries: 0 });
const say = { model: MODEL, messages: ASK, seed: SEED, max_tokens: LENGTH };
const tools = [{ type: 'function', function: { name: 'weather', description: 'Weather of a city.', parameters: PLACE } }];

drives('chat', async () => {
  const answer = await client.chat.completions.create(say);
  same(answer.choices[0].message.content, await generated());
});

drives('streams', async () => {
  let text = '';
  for await (const chunk of await client.chat.completions.create({ ...say, stream: true })) {
    text += chunk.choices[0].delta.content ?? '';
  }
  same(text, await generated());
});

drives('preferences', async () => {
  const terse = { preference: { brief: 1 } };
  const answer = await client.chat.completions.create({ ...say, ...terse });
  same(answer.choices[0].message.content, await generated(terse));
});

drives('json_schema', async () => {
  const response_format = { type: 'json_schema', json_schema: { name: 'dish', schema: SCHEMA, strict: true } };
  const answer = await client.chat.completions.parse({ ...say, max_tokens: LONG, response_format });
  isDish(JSON.parse(answer.choices[0].message.content));
});

drives('tools, streamed', async () => {
  const body = { model: MODEL, messages: ASK, max_tokens: LONG, tools, tool_choice: 'required', parallel_tool_calls: false };
  const message = await client.chat.completions.stream(body).finalMessage();
  const call = message.tool_calls[0].function;
  same([call.name, inPlace(JSON.parse(call.arguments).city)], ['weather', true]);
});

drives('responses', async () => {
  const body = { model: MODEL, input: ASK[0].content, max_output_tokens: LENGTH, seed: SEED };
  const answer = await client.responses.create(body);
  same(answer.output_text, await generated());
  same((await client.responses.stream(body).finalResponse()).output_text, answer.output_text);
});

drives('embeddings', async () => {
  const answer = await client.embeddings.create({ model: MODEL, input: 'a ladle' });
  const length = answer.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
  same(Math.abs(length - 1) < 1e-3, true);
});

drives('errors', async () => {
  const wrong = await client.chat.completions.create({ ...say, temperature: 9 }).catch((error) => error);
  same([wrong.status, wrong.param], [400, 'temperature']);
});

await main('openai');
