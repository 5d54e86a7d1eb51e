import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { driveModel } from './ai-checks.mjs';
import { KEY, MODEL, URL, main } from './common.mjs';

const provider = createOpenAICompatible({ name: 'ladle', baseURL: `${URL}/v1`, apiKey: KEY, supportsStructuredOutputs: true });
driveModel('chat', provider(MODEL));

await main('@ai-sdk/openai-compatible');
