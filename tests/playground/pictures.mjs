// Pictures of the page in the folder named on the command line, and the one that opens the README.
import { mkdirSync } from "node:fs";
import { ABSTRACT, DESKTOP, PHONE, browse, root, sample, send, serve, visit } from "./harness.mjs";

const folder = process.argv[2];
mkdirSync(folder, { recursive: true });
const server = await serve("backbones", ["--threads", "2"]);
const browser = await browse();
const GRAPHS = "Summarize this abstract in one sentence.\n\nGraph networks often fail when nodes of one class rarely touch. We show that a simple change of the aggregation step, which keeps the own features of a node apart from those of its neighbours, repairs most of the failures. Experiments on nine graphs confirm the analysis.";
try {
  for (const scheme of ["light", "dark"]) {
    for (const [size, viewport] of [["desktop", DESKTOP], ["phone", PHONE]]) {
      const { page, close } = await visit(browser, server.url, { scheme, viewport, deviceScaleFactor: size === "phone" ? 2 : 1 });
      const take = async state => page.screenshot({ path: `${folder}/${state}-${size}-${scheme}.png` });
      const fold = async () => { if (size === "phone") await page.locator("#panel-toggle").click(); };
      await page.locator("#lambda td.number").first().waitFor({ state: "attached" });
      await take("empty");
      await sample(page, { max_tokens: 60 });
      await page.locator("#sampling > summary").click();
      await page.locator("#panel-body").evaluate(body => { body.scrollTop = 0; });
      await send(page, ABSTRACT);
      await page.locator("#status").evaluate(status => { status.textContent = ""; });
      await take("answer");
      await page.locator(".foot summary").click();
      await take("facts");
      await page.getByRole("button", { name: "New" }).click();
      await fold();
      await page.goto(`${server.url}/#mu=0.8,0.1,0.1;0.1,0.8,0.1;0.1,0.2,0.7&max_tokens=60`);
      await page.reload();
      await page.locator("#soup b").waitFor();
      await send(page, GRAPHS);
      await page.locator("#status").evaluate(status => { status.textContent = ""; });
      await take("compare");
      await fold();
      await sample(page, { max_tokens: 1_000_000 });
      await page.locator("#panel-body").evaluate(body => { body.scrollTop = body.scrollHeight; });
      await send(page, "Hello");
      await take("error");
      await page.getByRole("button", { name: "Code", exact: true }).click();
      await take("code");
      await page.keyboard.press("Escape");
      await page.evaluate(() => { document.querySelector("#key").hidden = false; });
      await page.locator("#key").click();
      await take("key");
      await close();
    }
  }
  const { page, close } = await visit(browser, `${server.url}/#mu=1,0,0;0.45,0.55,0;1,1,1;0.5,0,0.5;0,0.5,0.5;0,0,1&max_tokens=60&at=B`,
    { viewport: { width: 1440, height: 1060 }, deviceScaleFactor: 1.5 });
  await send(page, GRAPHS);
  await page.locator("#status").evaluate(status => { status.textContent = ""; });
  await page.screenshot({ path: `${root}/docs/images/playground.png` });
  await close();
} finally {
  await browser.close();
  await server.stop();
}
