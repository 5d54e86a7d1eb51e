/* What the page holds. `points` are the preferences to answer, as weights; `at` is the one being set. */
const MOST_POINTS = 6;
const LETTERS = "ABCDEF";
const state = { soup: null, points: [], at: 0, alpha: null, turns: [], running: null, live: false };

const names = () => state.soup.objectives.map(objective => objective.name);
const current = () => state.points[state.at];
const dark = matchMedia("(prefers-color-scheme: dark)");
const tone = name => TONES[dark.matches ? "dark" : "light"][name];
const colour = (point, name = "ink") => `oklab(${blend(point, tone(name)).join(" ")})`;
const corner = i => names().map((_, j) => (i === j ? 1 : 0));
/* Weights by name, those of 0 left out. */
const named = weights => Object.fromEntries(names().map((name, i) => [name, weights[i]]).filter(([, weight]) => weight !== 0));
/* Weights by name in the order of the objectives, and as round as they are. */
function inOrder(byName) {
  const weights = names().map(name => byName[name] ?? 0), most = Math.max(...weights);
  const alike = weights.every(weight => weight === 0 || Math.abs(weight - most) < 1e-9);
  return weights.map(weight => (alike ? Number(weight > 0) : Number(weight.toFixed(4))));
}
const wording = point => names().map((name, i) => [name, point[i]]).filter(([, share]) => share > 0)
  .map(([name, share]) => `${name} ${percent(share)}`).join(" · ");

/* The shares of a preference as one bar in the colours of its objectives. */
function strip(point) {
  const parts = point.map((share, i) => paint(node("i"), { "flex-grow": share, background: colour(corner(i), "fill") }));
  return node("span", { class: "strip", "aria-hidden": "true" }, parts.filter((_, i) => point[i] > 0));
}

const OPTIONS = ["temperature", "max_tokens", "top_p", "top_k", "n", "seed"];
/* The sampling fields as numbers, those left empty left out. Throws where one is none. */
function sampling() {
  const taken = {};
  for (const name of OPTIONS) {
    const input = $(name);
    input.setAttribute("aria-invalid", !input.checkValidity());
    if (!input.checkValidity()) {
      const label = input.labels[0].textContent;
      throw Object.assign(new Refusal(`${label}: ${input.validationMessage}`), { input });
    }
    if (input.value !== "") taken[name] = Number(input.value);
  }
  const escapes = { n: "\n", t: "\t", "\\": "\\" };
  const stop = $("stop").value.split("\n").filter(line => line)
    .map(line => line.replace(/\\([nt\\])/g, (_, letter) => escapes[letter]));
  if (stop.length) taken.stop = stop;
  if (state.points.length > 1) delete taken.n;
  return taken;
}
/* The body of POST /generate for a message after the turns before it. */
function request(text, before) {
  const content = { prompt: text };
  if (state.soup.chat) {
    delete content.prompt;
    const system = $("system").value.trim();
    content.messages = [
      ...(system ? [{ role: "system", content: system }] : []),
      ...before.flatMap(turn => {
        const answer = turn.answers[turn.chosen];
        return answer?.text ? [{ role: "user", content: turn.text }, { role: "assistant", content: answer.text }] : [];
      }),
      { role: "user", content: text },
    ];
  }
  const wish = state.points.length > 1
    ? { preferences: state.points.map(named) } : { preference: named(current()) };
  return { ...content, ...wish, ...merge(), ...sampling() };
}
/* How λ and c follow from the preference, where the soup's own way is not meant. */
const merge = () => ({ ...(state.alpha !== null && { alpha: state.alpha }), ...($("rule").value && { lambda: $("rule").value }) });

/* The fragment of the address: all settings, and neither key nor texts. */
function address() {
  const fields = new URLSearchParams();
  for (const name of OPTIONS) {
    if ($(name).value !== $(name).defaultValue) fields.set(name, $(name).value);
  }
  if (state.alpha !== null) fields.set("alpha", state.alpha);
  if ($("rule").value) fields.set("lambda", $("rule").value);
  if (state.at) fields.set("at", LETTERS[state.at]);
  const points = state.points.map(point => point.join()).join(";");
  return `#mu=${points}${[...fields].length ? `&${fields}` : ""}`;
}
const remember = after(200, () => history.replaceState(null, "", address()));

/* Sets what a fragment says; returns what in it this soup cannot have. */
function restore(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const refused = [];
  for (const [name, value] of fields) {
    if (OPTIONS.includes(name)) {
      const input = $(name);
      input.value = value;
      if (input.value === value && input.checkValidity()) continue;
      input.value = input.defaultValue;
    } else if (name === "alpha") {
      const { min, max } = state.soup.alpha;
      const alpha = Number(value);
      if (value !== "" && alpha >= min && alpha <= max) { state.alpha = alpha; continue; }
    } else if (name === "lambda") {
      if (["exact", "clamp"].includes(value)) { $("rule").value = value; continue; }
    } else if (name === "mu") {
      const points = value.split(";").map(point => point.split(",").map(Number));
      const fits = points.every(point => point.length === names().length && shares(point));
      if (fits && points.length <= MOST_POINTS) { state.points = points; continue; }
    } else if (name === "at") {
      continue;
    }
    refused.push(`${name}=${value}`);
  }
  const at = LETTERS.indexOf(fields.get("at") || "A");
  state.at = at >= 0 && at < state.points.length ? at : 0;
  return refused;
}
