/* The current request as code to run elsewhere. The key stands for itself by a variable. */

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;
/* JSON is Python as well where it has neither booleans nor null, which a request of this page has not. */
const literal = value => JSON.stringify(value, null, 4);
const endpoint = path => new URL(path, location.href.replace(/[?#].*/, "")).href;

const LANGUAGES = {
  curl: body => [
    `curl -s ${quoted(endpoint("generate"))} \\`,
    ...(apiKey ? ['  -H "authorization: Bearer $LADLE_API_KEY" \\'] : []),
    "  -H 'content-type: application/json' \\",
    `  -d ${quoted(JSON.stringify(body, null, 2))}`,
  ].join("\n"),
  Python: body => [
    `import json${apiKey ? ", os" : ""}, urllib.request`, "",
    `body = ${literal(body)}`,
    `headers = {"content-type": "application/json"${apiKey ? ', "authorization": "Bearer " + os.environ["LADLE_API_KEY"]' : ""}}`,
    `request = urllib.request.Request(${literal(endpoint("generate"))}, json.dumps(body).encode(), headers)`,
    "with urllib.request.urlopen(request) as response:",
    "    answer = json.load(response)",
    body.preferences || body.n > 1 ? 'for choice in answer["choices"]:\n    print(choice["text"])' : 'print(answer["text"])',
  ].join("\n"),
  JavaScript: body => [
    `const body = ${JSON.stringify(body, null, 2)};`,
    `const headers = { "content-type": "application/json"${apiKey ? ", authorization: `Bearer ${process.env.LADLE_API_KEY}`" : ""} };`,
    `const response = await fetch(${JSON.stringify(endpoint("generate"))}, { method: "POST", headers, body: JSON.stringify(body) });`,
    "const answer = await response.json();",
    body.preferences || body.n > 1 ? "for (const choice of answer.choices) console.log(choice.text);" : "console.log(answer.text);",
  ].join("\n"),
  "OpenAI SDK": body => {
    if (!body.messages || body.preferences) return null;
    const own = ["preference", "alpha", "lambda", "top_k"].filter(name => name in body);
    const standard = Object.entries(body).filter(([name]) => !own.includes(name));
    const extra = Object.fromEntries(own.map(name => [name, body[name]]));
    const indented = value => literal(value).replaceAll("\n", "\n    ");
    return [
      ...(apiKey ? ["import os", ""] : []),
      "from openai import OpenAI", "",
      `client = OpenAI(base_url=${literal(endpoint("v1"))}, api_key=${apiKey ? 'os.environ["LADLE_API_KEY"]' : '"none"'})`,
      "answer = client.chat.completions.create(",
      `    model=${literal(state.soup.name)},`,
      ...standard.map(([name, value]) => `    ${name}=${indented(value)},`),
      `    extra_body=${indented(extra)},`, ")",
      body.n > 1 ? "for choice in answer.choices:\n    print(choice.message.content)" : "print(answer.choices[0].message.content)",
    ].join("\n");
  },
};

let language = "curl";
function showCode() {
  const last = state.turns.at(-1);
  const text = $("prompt").value.trim() || last?.text || "Hello";
  const before = $("prompt").value.trim() ? state.turns : state.turns.slice(0, -1);
  let body;
  try {
    body = request(text, before);
  } catch (error) {
    say(error.message);
    return;
  }
  const written = Object.entries(LANGUAGES).map(([name, write]) => [name, write(body)]).filter(([, code]) => code);
  if (!written.some(([name]) => name === language)) language = "curl";
  const tab = ([name]) => node("button", {
    type: "button", role: "tab", id: `tab-${name.replace(" ", "-")}`, "aria-controls": "code-text", "aria-selected": name === language,
    tabindex: name === language ? 0 : -1, onclick: () => { language = name; showCode(); },
  }, name);
  $("languages").replaceChildren(...written.map(tab));
  $("code-text").setAttribute("aria-labelledby", `tab-${language.replace(" ", "-")}`);
  $("code-text").firstElementChild.textContent = written.find(([name]) => name === language)[1];
  if (!$("code-sheet").open) $("code-sheet").showModal();
}
$("languages").addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tabs = [...$("languages").children], at = tabs.findIndex(tab => tab.tabIndex === 0);
  tabs[(at + step + tabs.length) % tabs.length].click();
  $("languages").querySelector("[tabindex='0']").focus();
});
$("code-copy").addEventListener("click", () => copy($("code-text").textContent, "Code"));
