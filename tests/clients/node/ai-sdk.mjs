import { createOpenAI } from '@ai-sdk/openai';
import { driveModel } from './ai-checks.mjs';
import { KEY, MODEL, SEED, URL, main } from './common.mjs';

const provider = createOpenAI({ baseURL: `${URL}/v1`, apiKey: KEY });
driveModel('chat', provider.chat(MODEL));
// OpenAI's responses have no seed, so that the library sends none.
const seeded = createOpenAI({
  baseURL: `${URL}/v1`,
  apiKey: KEY,
  fetch: (url, init) => fetch(url, { ...init, body: JSON.stringify({ ...JSON.parse(init.body), seed: SEED }) }),
});
driveModel('responses', seeded.responses(MODEL), { seed: undefined });

await main('@ai-sdk/openai');
