// A ladle server, a headless Chromium and pages in it that note what goes wrong.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const root = fileURLToPath(new URL("../..", import.meta.url));
const { LADLE_BIN = `${root}/target/release/ladle`, CHROMIUM } = process.env;

/** A server on a free port of this machine; `stop` ends it. */
export async function serve(soup, options = []) {
  const args = ["serve", `${root}/${soup}`, "--port", "0", "--offline", "--log-format", "json", ...options];
  const server = spawn(LADLE_BIN, args, { stdio: ["ignore", "ignore", "pipe"] });
  let url;
  for await (const line of createInterface({ input: server.stderr })) {
    const { message, address } = JSON.parse(line).fields;
    if (message === "listening") url = `http://${address}`;
    if (message?.startsWith("try: ")) break;
  }
  server.stderr.resume();
  if (server.exitCode !== null || !url) throw new Error(`ladle ended with ${server.exitCode}`);
  const stop = async () => {
    server.kill("SIGKILL");
    if (server.exitCode === null && server.signalCode === null) await once(server, "exit");
  };
  const ask = async (path, body) => {
    const response = await fetch(url + path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
    return response.json();
  };
  return { url, stop, ask };
}

export const browse = () => chromium.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

export const DESKTOP = { width: 1440, height: 900 };
export const PHONE = { width: 390, height: 844 };

/** A page at `url` whose soup is there. `trouble` lists errors and requests to other places; `sent` the
    bodies of what it asked for, by path. */
export async function visit(browser, url, { viewport = DESKTOP, scheme = "light", before, ready = true, ...options } = {}) {
  const phone = viewport.width < 600;
  const context = await browser.newContext({ viewport, colorScheme: scheme, isMobile: phone, hasTouch: phone, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const trouble = [], sent = [];
  page.on("console", message => { if (["error", "warning"].includes(message.type())) trouble.push(message.text()); });
  page.on("pageerror", error => trouble.push(String(error)));
  page.on("request", request => {
    const { origin, pathname } = new URL(request.url());
    if (origin !== new URL(url).origin && !request.url().startsWith("data:")) trouble.push(request.url());
    if (request.method() === "POST") sent.push({ path: pathname, body: request.postDataJSON() });
  });
  await before?.(page);
  await page.goto(url);
  if (ready) await page.locator("#soup b").waitFor();
  return { page, trouble, sent, close: () => context.close() };
}

export const ABSTRACT = "Summarize this abstract in one sentence.\n\nTraining large neural networks needs much memory. We study a method that stores activations in eight bits and recomputes the rest. On three image data sets the method halves memory use and keeps accuracy within 0.2 percent.";

/** Sends a message and waits until it is answered or refused. */
export async function send(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
  await answered(page);
}
export async function answered(page) {
  await page.locator(".turn").first().waitFor();
  await page.locator("[aria-busy]").waitFor({ state: "detached" });
}
/** Sets a number of the folded section of sampling. */
export async function sample(page, values) {
  await openSection(page, "sampling");
  for (const [name, value] of Object.entries(values)) await page.locator(`#${name}`).fill(String(value));
}
export async function openSection(page, id) {
  if ((await page.locator(`#${id}`).getAttribute("open")) === null) await page.locator(`#${id} > summary`).click();
}
