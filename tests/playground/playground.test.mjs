// The playground in a headless Chromium, on the default soup.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { ABSTRACT, PHONE, answered, browse, openSection, root, sample, send, serve, visit } from "./harness.mjs";

let browser, server;
before(async () => {
  server = await serve("backbones", ["--kv-cache", "64MiB", "--threads", "2"]);
  browser = await browse();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});
const opens = (name, options, steps) => test(name, async () => {
  const visited = await visit(browser, server.url + (options.fragment ?? ""), options);
  await steps(visited);
  const unexpected = visited.trouble.filter(text => !options.expected?.test(text));
  assert.deepEqual(unexpected, []);
  await visited.close();
});
const greedy = { max_tokens: 24, temperature: 0 };
const shares = async page => Promise.all((await page.locator("#weights output").all()).map(async output => parseInt(await output.textContent(), 10)));
const text = locator => locator.evaluate(element => element.textContent);

// What the front says of the soup as it is served.
const served = JSON.parse(readFileSync(`${root}/backbones/front.json`, "utf8")).methods.find(({ kind }) => kind === "clamped");

opens("it loads without errors and asks this server alone", {}, async ({ page }) => {
  assert.equal(await page.title(), "ladle · summaries");
  assert.deepEqual(await shares(page), [33, 33, 33]);
  await page.locator("#lambda td.number").first().waitFor({ state: "attached" });
  assert.equal(await page.locator(".front circle").count(), served.points.length + 1);
});

opens("dragging in the triangle moves the preference, λ and what is expected", {}, async ({ page }) => {
  await openSection(page, "model");
  await page.locator("#lambda td.number").first().waitFor();
  const lambda = () => page.locator("#lambda tbody tr").evaluateAll(rows => rows.slice(0, 3).map(row => row.querySelector(".number").textContent));
  const [first, expected] = [await lambda(), await page.locator("#prediction").textContent()];
  await page.locator(".plane").scrollIntoViewIfNeeded();
  const { x, y, width, height } = await page.locator(".plane").boundingBox();
  const at = (across, down) => [x + (across / 320) * width, y + (down / 292) * height];
  await page.mouse.move(...at(160, 185));
  await page.mouse.down();
  await page.mouse.move(...at(100, 220), { steps: 4 });
  await page.mouse.move(...at(20, 275), { steps: 4 });
  await page.mouse.up();
  assert.deepEqual(await shares(page), [0, 100, 0]);
  const solved = await server.ask("/v1/solve", { preference: { brief: 1 } });
  const shown = Object.values(solved.lambda).map(value => value.toFixed(2).replace("-", "−"));
  await page.waitForFunction(last => document.querySelector("#lambda tbody").textContent.includes(last), shown[1]);
  assert.deepEqual(await lambda(), shown);
  assert.notDeepEqual(shown, first);
  const measured = served.points.find(point => point.preference[1] === 1);
  const numbers = await page.locator("#prediction output").allTextContents();
  assert.deepEqual(numbers, measured.mean.map(value => value.toFixed(2)));
  assert.notEqual(await page.locator("#prediction").textContent(), expected);
  await page.waitForFunction(() => location.hash.startsWith("#mu=0,1,0"));
});

opens("arrow keys move in the triangle too", {}, async ({ page }) => {
  await page.locator(".plane").focus();
  for (let step = 0; step < 12; step++) await page.keyboard.press("Shift+ArrowUp");
  assert.deepEqual(await shares(page), [100, 0, 0]);
  assert.equal(await page.locator(".plane").getAttribute("aria-valuetext"), "faithful 100 %");
});

opens("weights that are no preference are said at once and sent nowhere", {}, async ({ page, sent }) => {
  await page.locator("#lambda td.number").first().waitFor({ state: "attached" });
  const before = sent.length;
  for (const i of [0, 1, 2]) await page.locator(`#weight-${i}`).fill("0");
  assert.match(await page.locator("#weights-error").textContent(), /one of them above 0/);
  assert.equal(await page.locator("#weight-1").getAttribute("aria-invalid"), "true");
  const solves = sent.slice(before).filter(({ body }) => Object.keys(body.preference ?? {}).length === 0);
  assert.deepEqual(solves, []);
  await page.getByLabel("Message", { exact: true }).fill("Hello");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator(".turn").count(), 0);
  assert.equal(await page.getByLabel("Message", { exact: true }).inputValue(), "Hello");
  await page.locator("#weight-2").fill("3");
  assert.deepEqual(await shares(page), [0, 0, 100]);
  assert.equal(await page.locator("#weights-error").textContent(), "");
});

opens("an answer streams, is the server's, and says how it came to be", {}, async ({ page, sent }) => {
  await sample(page, greedy);
  await page.evaluate(() => {
    window.lengths = new Set();
    new MutationObserver(() => window.lengths.add(document.querySelector(".prose")?.textContent.length ?? 0))
      .observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true });
  });
  await page.getByRole("button", { name: "everyday" }).click();
  await send(page, ABSTRACT);
  const { body } = sent.findLast(({ path }) => path === "/generate");
  assert.deepEqual(Object.keys(body.preference), ["faithful", "brief", "plain"]);
  const answer = await server.ask("/generate", { ...body, stream: false });
  assert.equal((await text(page.locator(".prose"))).trim(), answer.text.trim());
  const grown = await page.evaluate(() => [...window.lengths].filter(length => length > 0).length);
  assert.ok(grown >= 2, `seen at ${grown} lengths`);
  await page.locator(".foot summary").click();
  const facts = await text(page.locator(".foot dl"));
  for (const part of ["faithful 0.375", "plain 0.625", "μ", "α", answer.mode, answer.soup.digest.slice(0, 12)]) assert.ok(facts.includes(part), `${part} in ${facts}`);
});

opens("a comparison streams each preference's own answer from one request", {}, async ({ page, sent }) => {
  await sample(page, greedy);
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  await page.getByRole("button", { name: "Add", exact: true }).click();
  assert.equal(await page.locator(".point").count(), 3);
  await page.evaluate(() => {
    window.together = false;
    new MutationObserver(() => {
      const lengths = [...document.querySelectorAll(".answer.writing .prose")].map(prose => prose.textContent.length);
      window.together ||= lengths.filter(length => length > 0).length > 1;
    }).observe(document.querySelector("#turns"), { childList: true, subtree: true });
  });
  await send(page, ABSTRACT);
  const asked = sent.filter(({ path }) => path === "/generate");
  assert.equal(asked.length, 1);
  assert.equal(asked[0].body.preferences.length, 3);
  const { choices } = await server.ask("/generate", { ...asked[0].body, stream: false });
  const shown = await page.locator(".prose").evaluateAll(parts => parts.map(part => part.textContent.trim()));
  assert.deepEqual(shown, choices.map(choice => choice.text.trim()));
  assert.ok(await page.evaluate(() => window.together), "the answers came one after the other");
  for (const [index, choice] of choices.entries()) {
    await page.locator(".answer").nth(index).locator("summary").click();
    const facts = await text(page.locator(".answer").nth(index).locator("dl"));
    assert.ok(facts.includes(`brief ${choice.lambda.brief.toFixed(3).replace("-", "−")}`), facts);
  }
});

opens("a conversation goes on from the chosen answer; an edited message drops what came after", {}, async ({ page, sent }) => {
  await sample(page, { ...greedy, max_tokens: 12 });
  await openSection(page, "instructions");
  await page.locator("#system").fill("Be kind.");
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  await send(page, "What is soup?");
  await page.getByRole("button", { name: "Go on from this" }).first().click();
  const chosen = await page.locator(".prose").first().evaluate(part => part.innerText);
  await send(page, "And bread?");
  const { messages } = sent.findLast(({ path }) => path === "/generate").body;
  assert.deepEqual(messages.map(({ role }) => role), ["system", "user", "assistant", "user"]);
  assert.equal(messages[0].content, "Be kind.");
  assert.equal(messages[2].content.replace(/\s+/g, " ").trim(), chosen.replace(/\s+/g, " ").trim());
  await page.getByRole("button", { name: "Edit" }).first().click();
  await page.locator(".asked textarea").fill("What is tea?");
  await page.getByRole("button", { name: "Ask", exact: true }).click();
  await answered(page);
  assert.equal(await page.locator(".turn").count(), 1);
  const again = sent.findLast(({ path }) => path === "/generate").body;
  assert.deepEqual(again.messages.at(-1), { role: "user", content: "What is tea?" });
});

opens("an answer is given again where the preference was moved to", {}, async ({ page, sent }) => {
  await sample(page, { ...greedy, max_tokens: 8 });
  await page.getByRole("group", { name: "Examples" }).getByRole("button").first().click();
  await answered(page);
  assert.match(await page.locator(".said").textContent(), /^Summarize this abstract/);
  await page.getByLabel("Follow the preference").check();
  await page.getByRole("button", { name: "headline" }).click();
  await page.waitForFunction(() => document.querySelector(".head")?.textContent.includes("brief 50 %"));
  await answered(page);
  const asked = sent.filter(({ path }) => path === "/generate");
  assert.deepEqual(asked.map(({ body }) => body.preference.brief), [asked[0].body.preference.brief, 1]);
  assert.equal(await page.locator(".turn").count(), 1);
});

opens("stopping keeps what was written", {}, async ({ page }) => {
  await sample(page, { max_tokens: 400, temperature: 1 });
  await page.getByLabel("Message", { exact: true }).fill("Write a long story.");
  await page.keyboard.press("Enter");
  await page.locator(".answer.writing").waitFor();
  await page.keyboard.press("Escape");
  await answered(page);
  assert.notEqual(await page.locator(".prose").textContent(), "");
  assert.equal(await page.locator("#turns .error").count(), 0);
});

opens("a refusal shows the server's words and leaves the page usable", { expected: /400/ }, async ({ page }) => {
  await sample(page, { max_tokens: 1_000_000 });
  await send(page, "Hello");
  assert.match(await page.getByRole("alert").last().textContent(), /context length/);
  await sample(page, { max_tokens: 4 });
  await page.getByRole("button", { name: "Answer again" }).click();
  await page.waitForFunction(() => document.querySelector(".prose")?.textContent);
  assert.equal(await page.locator("#turns .error").count(), 0);
});

opens("a setting that is no number of its range is named before anything is sent", {}, async ({ page, sent }) => {
  await sample(page, { temperature: 9 });
  await page.getByLabel("Message", { exact: true }).fill("Hello");
  await page.keyboard.press("Enter");
  assert.match(await page.locator("#sampling-error").textContent(), /^Temperature: /);
  assert.equal(sent.filter(({ path }) => path === "/generate").length, 0);
});

opens("every sampling setting is sent", {}, async ({ page, sent }) => {
  await sample(page, { temperature: 0.5, max_tokens: 5, top_p: 0.9, top_k: 40, n: 2, seed: 7, stop: "END\\n\nzzz" });
  await openSection(page, "model");
  await page.locator("#alpha").focus();
  await page.keyboard.press("End");
  await page.locator("#rule").selectOption("clamp");
  await send(page, "Hello");
  const { messages, preference, ...body } = sent.findLast(({ path }) => path === "/generate").body;
  assert.deepEqual(body, { temperature: 0.5, max_tokens: 5, top_p: 0.9, top_k: 40, n: 2, seed: 7, stop: ["END\n", "zzz"], alpha: 1, lambda: "clamp", stream: true });
  assert.equal(await page.locator(".answer").count(), 2);
});

opens("the address holds the settings, and neither texts nor what this soup cannot have", {}, async ({ page }) => {
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  for (const [i, weight] of [3, 1, 0].entries()) await page.locator(`#weight-${i}`).fill(String(weight));
  await sample(page, { temperature: 0.3, top_k: 20, stop: "a secret" });
  await page.getByLabel("Message", { exact: true }).fill("another secret");
  await page.waitForFunction(() => location.hash.includes("top_k=20"));
  assert.ok(!page.url().includes("secret"));
  await page.reload();
  await page.locator("#soup b").waitFor();
  assert.equal(await page.locator(".point").count(), 2);
  assert.deepEqual(await shares(page), [75, 25, 0]);
  assert.equal(await page.locator("#temperature").inputValue(), "0.3");
  await page.goto("about:blank");
  await page.goto(`${server.url}/#mu=1,2&temperature=7&colour=red&top_k=5`);
  await page.locator("#soup b").waitFor();
  const told = await page.locator("#status").textContent();
  for (const part of ["mu=1,2", "temperature=7", "colour=red"]) assert.ok(told.includes(part), told);
  assert.ok(!told.includes("top_k"), told);
  assert.deepEqual(await shares(page), [33, 33, 33]);
});

opens("the code that it writes gives the answer that it shows", {}, async ({ page }) => {
  await sample(page, greedy);
  await send(page, "What is soup? It's “hot”, isn't it?\n\t\\n 'x'");
  const shown = (await text(page.locator(".prose"))).replace(/\s+/g, " ").trim();
  await page.getByRole("button", { name: "Code", exact: true }).click();
  const code = async language => {
    await page.getByRole("tab", { name: language, exact: true }).click();
    return page.locator("#code-text").textContent();
  };
  const same = (answer, language) => assert.equal(answer.replace(/[*_`#]/g, "").replace(/\s+/g, " ").trim(), shown, language);
  same(JSON.parse(execFileSync("bash", ["-c", await code("curl")], { encoding: "utf8" })).text, "curl");
  same(execFileSync("python3", ["-c", await code("Python")], { encoding: "utf8" }), "Python");
  same(execFileSync("node", ["--input-type=module", "-e", await code("JavaScript")], { encoding: "utf8" }), "JavaScript");
  assert.match(await code("OpenAI SDK"), /model="summaries"[^]*extra_body=\{\s*"preference"/);
});

/** Answers every generation with events of the test's own. */
const answers = stream => page => page.route("**/generate", route => route.fulfill({ status: 200, contentType: "text/event-stream", body: stream }));
const happens = (name, data) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
const whole = text => happens("token", { index: 0, text, id: 1 }) + happens("done", {
  text, finish_reason: "stop", usage: { prompt_tokens: 1, completion_tokens: 1 }, preference: { brief: 1 }, alpha: 0, lambda: { brief: 1 }, lambda_rule: "exact",
  coefficients: { brief: 1, sft: 0 }, mode: "mixed", cache: null, timings: { queue_ms: 1, merge_ms: 0, first_token_ms: 2, total_ms: 3 }, soup: { name: "x", digest: "0123456789abcdef" },
});

const HOSTILE = '# Title\n<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\n\n[a](javascript:alert(1)) [b](https://example.org/x) **bold** `a<b`\n\n```html\n<b>no</b>\n```\n- one\n- two\n  1. inner\n\n| a | b |\n|---|---|\n| 1 | *2* |';
opens("Markdown is shown as such, and markup of the model's as text", { before: answers(whole(HOSTILE)), expected: /TrustedHTML/ }, async ({ page }) => {
  await send(page, "Hello");
  const prose = page.locator(".prose");
  const count = selector => prose.locator(selector).count();
  assert.deepEqual(await Promise.all(["img", "script", "a", "strong", "pre", "li", "td em", "[role=heading]"].map(count)), [0, 0, 1, 1, 1, 3, 1, 1]);
  assert.equal(await prose.locator("a").getAttribute("href"), "https://example.org/x");
  assert.ok((await prose.textContent()).includes('<img src=x onerror="window.pwned=1"><script>'));
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  const refused = await page.evaluate(() => { try { document.body.innerHTML = "<b></b>"; return false; } catch { return true; } });
  assert.ok(refused, "the policy lets text become markup");
});

const LONG = ["*a ", "**a ", "_a ", "`", "[", "# a" + " ".repeat(3000) + "b\n", "- ", "> ", "|", "|-", "~~a ", "1. a\n"].map(part => part.repeat(3000).slice(0, 6000) + "x").join("\n\n");
opens("a long answer of unfinished Markdown is shown to its end", { before: answers(whole(LONG)) }, async ({ page }) => {
  await send(page, "Hello");
  assert.ok((await page.locator(".prose").textContent()).endsWith("x"));
});

opens("an answer that breaks off is kept and said to be incomplete", { before: answers(happens("token", { index: 0, text: "Half an", id: 1 })) }, async ({ page }) => {
  await send(page, "Hello");
  assert.equal(await page.locator(".prose").textContent(), "Half an");
  assert.match(await page.locator("#turns .error").textContent(), /ended before/);
});

/** A soup of other objectives, answered for by the test. */
function other(objectives) {
  const even = Object.fromEntries(objectives.map(name => [name, 1 / objectives.length]));
  const front = { prompts: 3, methods: [{ method: "bone soup", points: objectives.map((_, i) => {
    const one = objectives.map((_, j) => (i === j ? 1 : 0));
    return { preference: one, mean: one };
  }) }] };
  const soup = { name: "other", digest: "0123456789abcdef", description: null, objectives: objectives.map(name => ({ name, description: "" })), matrix: [], lambda_rule: "exact", presets: {}, default: even, alpha: { default: 0, min: 0, max: 0 }, chat: true, front, front_method: "bone soup", unpredicted: null };
  return async page => {
    await page.route("**/v1/soup", route => route.fulfill({ json: soup }));
    await page.route("**/v1/solve", route => route.fulfill({ json: { preference: even, alpha: 0, lambda: even, lambda_rule: "exact", coefficients: { ...even, sft: 0 } } }));
  };
}
opens("two objectives have one slider", { before: other(["kind", "short"]) }, async ({ page }) => {
  await page.getByLabel("From kind to short").fill("25");
  assert.deepEqual(await shares(page), [75, 25]);
  assert.deepEqual(await page.locator("#prediction output").allTextContents(), ["0.75", "0.25"]);
  await page.locator("#weight-0").fill("1");
  await page.locator("#weight-1").fill("3");
  assert.equal(await page.getByLabel("From kind to short").inputValue(), "75");
});
opens("more than three have a bar each", { before: other(["a", "b", "c", "d", "e"]) }, async ({ page }) => {
  const bars = page.locator("#weights [type=range]");
  assert.equal(await bars.count(), 5);
  for (const i of [1, 2, 3, 4]) await bars.nth(i).fill("0");
  assert.deepEqual(await shares(page), [100, 0, 0, 0, 0]);
  await bars.nth(0).fill("0");
  assert.match(await page.locator("#weights-error").textContent(), /above 0/);
});

opens("on a phone the message stays below the answer, and nothing is wider than the screen", { viewport: PHONE }, async ({ page }) => {
  const inside = async selector => {
    const box = await page.locator(selector).boundingBox();
    return box.x >= 0 && box.y >= 0 && box.x + box.width <= PHONE.width && box.y + box.height <= PHONE.height;
  };
  assert.ok(await inside(".plane") && await inside("#send"));
  await page.touchscreen.tap(...await page.locator(".plane").boundingBox().then(({ x, y, width, height }) => [x + width * 0.08, y + height * 0.9]));
  assert.deepEqual(await shares(page), [0, 100, 0]);
  await sample(page, { max_tokens: 12 });
  await page.getByLabel("Message", { exact: true }).fill("Hello");
  await page.locator("#send").tap();
  await answered(page);
  assert.ok(await inside(".answer") && await inside("#prompt"));
  assert.equal(await page.locator("#panel-toggle").getAttribute("aria-expanded"), "false");
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
});

test("a server with keys is asked with the key that the sheet takes, which stands nowhere else", async () => {
  const guarded = await serve("tests/fixtures/soup-tiny", ["--api-key", "open-sesame", "--kv-cache", "16MiB"]);
  try {
    const { page, trouble, sent, close } = await visit(browser, guarded.url, { ready: false });
    const sheet = page.getByRole("dialog");
    await sheet.waitFor();
    assert.match(await sheet.textContent(), /no API key/);
    await page.locator("#key-value").fill("wrong");
    await page.keyboard.press("Enter");
    await sheet.getByText("not known").waitFor();
    await page.locator("#key-value").fill("open-sesame");
    await page.keyboard.press("Enter");
    await page.locator("#soup b").waitFor();
    assert.equal(await sheet.count(), 0);
    await sample(page, { max_tokens: 4 });
    await send(page, "Hello");
    assert.equal(await page.locator("#turns .error").count(), 0);
    await page.getByRole("button", { name: "Code", exact: true }).click();
    assert.ok((await page.locator("#code-text").textContent()).includes("$LADLE_API_KEY"));
    const everywhere = await page.evaluate(() => document.documentElement.outerHTML + location.href + JSON.stringify({ ...localStorage, ...sessionStorage }));
    assert.ok(!everywhere.includes("open-sesame"));
    assert.ok(sent.some(({ path }) => path === "/generate"));
    assert.deepEqual(trouble.filter(text => !text.includes("401")), []);
    await close();
  } finally {
    await guarded.stop();
  }
});

const axe = readFileSync(`${root}/tests/playground/node_modules/axe-core/axe.min.js`, "utf8");
for (const scheme of ["light", "dark"]) {
  for (const [size, viewport] of [["desktop", undefined], ["phone", PHONE]]) {
    opens(`axe finds nothing in any state, ${scheme}, ${size}`, { scheme, viewport, expected: /400/, bypassCSP: true }, async ({ page }) => {
      await page.evaluate(axe);
      const check = async state => {
        const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
        const told = found.violations.map(({ id, nodes }) => `${id}: ${nodes.map(node => `${node.html} ${node.any[0]?.message ?? ""}`).join("; ")}`);
        assert.deepEqual(told, [], state);
      };
      await page.locator("#lambda td.number").first().waitFor({ state: "attached" });
      await check("empty");
      for (const id of ["model", "sampling", "instructions"]) await openSection(page, id);
      await check("all sections open");
      await page.locator("#weight-0").fill("-1");
      await check("no preference");
      await page.locator("#weight-0").fill("1");
      await sample(page, { max_tokens: 10 });
      await send(page, "Hello");
      await page.locator(".foot summary").click();
      await check("an answer");
      if (viewport) await page.locator("#panel-toggle").click();
      await page.getByRole("button", { name: "Compare", exact: true }).click();
      await page.getByRole("button", { name: "Add", exact: true }).click();
      await send(page, ABSTRACT);
      await check("a comparison");
      if (viewport) await page.locator("#panel-toggle").click();
      await sample(page, { max_tokens: 1_000_000 });
      await send(page, "Hello");
      await check("an error");
      await page.getByRole("button", { name: "Code", exact: true }).click();
      await check("code");
      await page.keyboard.press("Escape");
      await page.evaluate(() => { document.querySelector("#key").hidden = false; });
      await page.locator("#key").click();
      await check("the key's sheet");
    });
  }
}
