// The library in a page of headless Chromium: another origin than the server's, so that every request is preceded by
// a preflight with the library's own headers.
import { spawn } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { ASK, LENGTH, MODEL, SEED, URL as SERVER, WORK, drives, generated, main, same } from './common.mjs';

const PATIENCE = 120_000;
const page = `<!doctype html><meta charset="utf-8"><title>openai</title>
<script type="importmap">{"imports": {"openai": "/node_modules/openai/index.mjs"}}</script>
<script type="module">
const told = {};
try {
  const { OpenAI } = await import('openai');
  const client = new OpenAI({ baseURL: '${SERVER}/v1', apiKey: 'none', maxRetries: 0, dangerouslyAllowBrowser: true });
  const say = { model: '${MODEL}', messages: ${JSON.stringify(ASK)}, seed: ${SEED}, max_tokens: ${LENGTH} };
  told.whole = (await client.chat.completions.create(say)).choices[0].message.content;
  told.streamed = '';
  for await (const chunk of await client.chat.completions.create({ ...say, stream: true })) {
    told.streamed += chunk.choices[0].delta.content ?? '';
  }
  told.terse = (await client.chat.completions.create(say, { headers: { 'X-Preference': 'brief=1' } })).choices[0].message.content;
  told.refused = await client.chat.completions.create({ ...say, temperature: 9 }).catch((error) => error.param);
} catch (error) {
  told.error = String(error);
}
await fetch('/told', { method: 'POST', body: JSON.stringify(told) });
</script>`;

/** What the page tells. */
async function open() {
  const profile = join(WORK, 'profile');
  rmSync(profile, { recursive: true, force: true });
  let browser;
  const told = new Promise((resolve, reject) => {
    const server = createServer((request, response) => {
      if (request.url === '/told') {
        let body = '';
        request.on('data', (data) => (body += data));
        request.on('end', () => (response.end(), server.close(), resolve(JSON.parse(body))));
      } else if (request.url.startsWith('/node_modules/openai/')) {
        const path = join(WORK, normalize(new globalThis.URL(request.url, 'http://x').pathname));
        const type = /\.m?js$/.test(extname(path)) ? 'text/javascript' : 'application/json';
        response.setHeader('content-type', type);
        response.end(readFileSync(path));
      } else {
        response.setHeader('content-type', 'text/html');
        response.end(page);
      }
    });
    server.listen(0, '127.0.0.1', () => {
      const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'];
      flags.push('--disable-background-networking', '--disable-component-update', `--user-data-dir=${profile}`);
      browser = spawn('chromium', [...flags, '--remote-debugging-port=0', `http://127.0.0.1:${server.address().port}/`]);
      browser.on('error', reject);
      setTimeout(() => reject(new Error('the page told nothing')), PATIENCE).unref();
    });
  });
  try {
    return await told;
  } finally {
    browser?.kill();
  }
}

const told = await open().catch((error) => ({ error: String(error) }));
const shown = (what, expected) => async () => {
  if (told.error) throw new Error(told.error);
  same(what(), await expected());
};
drives('chat', shown(() => told.whole, generated));
drives('streams', shown(() => told.streamed, generated));
drives('a preference in a header', shown(() => told.terse, () => generated({ preference: { brief: 1 } })));
drives('errors', shown(() => told.refused, () => 'temperature'));

await main('openai');
