/* The page put together. */

let drawDial = () => {}, drawRows = () => {}, drawExpectation = () => {};

/* Everything that shows the preferences, after any of them or how they are merged changed. */
function changed(touched) {
  const point = shares(current());
  const invalid = point ? "" : "A preference is weights of 0 and more, one of them above 0.";
  if ($("weights-error").textContent !== invalid) $("weights-error").textContent = invalid;
  document.documentElement.style.setProperty("--accent", point ? colour(point) : "");
  drawDial();
  drawRows(touched);
  drawExpectation();
  drawPoints();
  remember();
  if (point) solve();
}
function move(point) {
  state.points[state.at] = point;
  changed();
  answerAgain();
}
function setWeight(index, weight, input) {
  state.points[state.at] = current().map((old, i) => (i === index ? weight : old));
  changed(input);
  answerAgain();
}
function select(index) {
  state.at = index;
  changed();
}
const answerAgain = after(350, () => {
  const last = state.turns.at(-1);
  if (state.live && last && state.points.every(shares)) ask(last);
});

/* A corner or the middle, whichever is farthest from the preferences that there are. */
function addPoint() {
  const candidates = [...names().map((_, i) => corner(i)), names().map(() => 1 / names().length)];
  const distance = candidate => Math.min(...state.points.map(weights => {
    const point = shares(weights) ?? candidate;
    return Math.hypot(...point.map((share, i) => share - candidate[i]));
  }));
  const farthest = candidates.reduce((a, b) => (distance(b) > distance(a) + 1e-9 ? b : a));
  state.points.push(tidy(farthest));
  select(state.points.length - 1);
}
function removePoint(index) {
  state.points.splice(index, 1);
  select(Math.min(index, state.points.length - 1));
}
function drawPoints() {
  const several = state.points.length > 1;
  const chip = (weights, i) => {
    const point = shares(weights);
    const label = `Preference ${LETTERS[i]}: ${point ? wording(point) : "none"}`;
    return paint(node("button", { type: "button", class: "point", "aria-pressed": i === state.at, "aria-label": label, title: label, onclick: () => select(i) }, LETTERS[i]),
      { "--own": point ? colour(point) : "currentcolor" });
  };
  const focused = document.activeElement?.closest("#points") && [...$("points").children].indexOf(document.activeElement);
  $("points").replaceChildren(
    ...(several ? state.points.map(chip) : []),
    ...(several ? [node("button", { type: "button", class: "text", onclick: () => removePoint(state.at), "aria-label": `Remove preference ${LETTERS[state.at]}` }, "Remove")] : []),
    ...(state.points.length < MOST_POINTS ? [node("button", { type: "button", class: "text", id: "add-point", onclick: addPoint }, several ? "Add" : "Compare")] : []));
  if (typeof focused === "number") $("points").children[Math.min(focused, $("points").children.length - 1)].focus();
  const valid = state.points.map(shares).filter(point => point);
  const point = shares(current());
  const told = several ? `${valid.length} side by side` : point ? wording(point) : "no preference";
  $("panel-strip").replaceChildren(...valid.map(strip));
  $("panel-text").textContent = told;
  $("plan").replaceChildren(...valid.map(strip), node("span", {}, told));
}

const solve = after(60, async () => {
  if (!shares(current())) return;
  const preference = named(current());
  try {
    const solved = await (await call("v1/solve", { preference, ...merge() })).json();
    const alpha = typeof solved.alpha === "number" ? fixed(solved.alpha, 2) : "by objective";
    $("alpha-value").value = alpha;
    $("model-hint").textContent = `λ ${names().map(name => fixed(solved.lambda[name], 2)).join(", ")}`;
    $("lambda").replaceChildren(signedBars(solved));
    $("solve-error").textContent = "";
  } catch (error) {
    if (error.status !== 401) $("solve-error").textContent = error.message;
  }
});
/* λ and c from zero on a common scale, negative ones to the left. */
function signedBars({ lambda, coefficients, lambda_rule: rule }) {
  const values = [...Object.values(lambda), ...Object.values(coefficients)];
  const low = Math.min(0, ...values), range = Math.max(1, ...values) - low;
  const share = value => `${(100 * value) / range}%`;
  const cell = (value, own) => {
    const bar = paint(node("i"), { left: share(Math.min(value, 0) - low), width: share(Math.abs(value)), background: own });
    const zero = paint(node("b"), { left: share(-low) });
    return [node("td", {}, node("span", { class: "signed", "aria-hidden": "true" }, bar, zero)), node("td", { class: "number" }, fixed(value, 2))];
  };
  const row = (name, i) => node("tr", {}, node("th", { scope: "row" }, name), i === null ? [node("td"), node("td")] : cell(lambda[name], colour(corner(i), "fill")),
    cell(coefficients[name], i === null ? "var(--soft)" : colour(corner(i), "fill")));
  const head = node("tr", {}, node("td"), node("th", { colspan: 2, scope: "colgroup" }, rule === "clamp" ? "λ, B⁻¹μ clamped" : "λ = B⁻¹μ"), node("th", { colspan: 2, scope: "colgroup" }, "c, in the weights"));
  return node("table", { class: "merge" }, node("thead", {}, head), node("tbody", {}, names().map(row), row("sft", null)));
}

function openPanel(open) {
  $("panel").classList.toggle("closed", !open);
  $("panel-toggle").setAttribute("aria-expanded", open);
}
const onPhone = matchMedia("(max-width: 52rem)");
function showRunning() {
  const running = state.running !== null;
  $("send").hidden = running;
  $("halt").hidden = !running;
  $("hero").hidden = state.turns.length > 0;
  $("new").disabled = state.turns.length === 0;
}
async function send() {
  const text = $("prompt").value.trim();
  if (!text || !state.soup || state.running) return;
  const turn = addTurn(text);
  if (!checked(turn)) {
    state.turns.pop();
    turn.element.remove();
    return;
  }
  $("prompt").value = "";
  grow();
  if (onPhone.matches) openPanel(false);
  $("hero").hidden = true;
  turn.element.scrollIntoView({ block: "start" });
  await ask(turn);
}
function grow() {
  const area = $("prompt");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.3)}px`;
}

let retry = null;
function askKey(why, then) {
  retry = then;
  $("key-why").textContent = why;
  $("key").hidden = false;
  if (!$("key-sheet").open) $("key-sheet").showModal();
  $("key-value").focus();
}
function showSettings() {
  const value = (name, standard) => ($(name).value === "" ? standard : $(name).value);
  const temperature = Number(value("temperature", "1"));
  const more = ["top_p", "top_k", "n", "seed", "stop"].filter(name => $(name).value !== "").length;
  $("sampling-hint").textContent = [temperature ? `T ${temperature}` : "greedy", `${value("max_tokens", "?")} tokens`, ...(more ? [`+${more}`] : [])].join(" · ");
  $("instructions-hint").textContent = $("system").value.trim() ? "set" : "none";
  $("n").disabled = state.points.length > 1;
  $("alpha-reset").hidden = state.alpha === null;
}

function sayRefused(refused) {
  if (refused.length) say(`Left out of the link, which this soup cannot have: ${refused.join(", ")}`);
}
function build() {
  const { soup } = state, many = names().length;
  $("soup").replaceChildren(node("b", {}, soup.name), ` ${soup.digest.slice(0, 8)}`);
  document.title = `ladle · ${soup.name}`;
  state.points = [inOrder(soup.default)];
  const refused = restore(location.hash);
  const front = measured(soup.front, soup.front_method, many);
  drawDial = many === 3 ? triangle(move, select, front?.points ?? []) : many === 2 ? slider(move) : () => {};
  drawRows = rows(setWeight, many !== 3 && many !== 2);
  drawExpectation = expectation(front);
  $("presets").replaceChildren(...Object.entries(soup.presets).map(([name, weights]) => {
    const point = shares(inOrder(weights));
    return node("button", { type: "button", onclick: () => move(inOrder(weights)) }, strip(point), name);
  }));
  Object.assign($("alpha"), { min: soup.alpha.min, max: soup.alpha.max });
  $("alpha").value = state.alpha ?? (typeof soup.alpha.default === "number" ? soup.alpha.default : soup.alpha.min);
  $("alpha").disabled = soup.alpha.min === soup.alpha.max;
  $("instructions").hidden = !soup.chat;
  const [line, lead, how] = $("hero").children;
  line.textContent = many === 3 ? "Every point of the triangle is a model." : "Every mix of the objectives is a model.";
  lead.textContent = soup.description ?? "";
  how.textContent = `Set how much each objective matters, ask, move the point, ask again: the weights are merged anew for each request.${soup.chat ? "" : " The base has no chat template: a message is a text to be continued."}`;
  const examples = (soup.examples ?? []).filter(text => text.trim()).slice(0, 3);
  $("examples").replaceChildren(...examples.map(text => node("button", { type: "button", onclick: () => { $("prompt").value = text; send(); } }, node("span", {}, text.replace(/\s+/g, " ")))));
  sayRefused(refused);
  changed();
  showSettings();
  showRunning();
}
async function load() {
  try {
    state.soup = await (await call("v1/soup")).json();
    build();
  } catch (error) {
    $("soup").textContent = error.message;
    if (error.status === 401) askKey(error.message, load);
    else if (error.status === 503 || error.status === 0) setTimeout(load, 1000);
  }
}

$("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", event => {
  const touch = matchMedia("(pointer: coarse)").matches;
  if (event.key !== "Enter" || event.isComposing || event.shiftKey || (touch && !event.ctrlKey && !event.metaKey)) return;
  event.preventDefault();
  send();
});
$("halt").addEventListener("click", () => state.running?.abort());
document.addEventListener("keydown", event => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) state.running?.abort(); });
$("new").addEventListener("click", () => {
  state.running?.abort();
  state.running = null;
  state.turns.splice(0).forEach(turn => turn.element.remove());
  showRunning();
  $("prompt").focus();
});
$("link").addEventListener("click", () => {
  history.replaceState(null, "", address());
  copy(location.href, "Link to these settings");
});
$("code").addEventListener("click", () => { if (state.soup) showCode(); });
$("key").addEventListener("click", () => askKey("The key that requests of this page bring.", null));
$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  apiKey = $("key-value").value.trim();
  $("key-sheet").close();
  const then = retry;
  retry = null;
  then?.();
});
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
$("panel-toggle").addEventListener("click", () => openPanel($("panel").classList.contains("closed")));
$("alpha").addEventListener("input", () => { state.alpha = Number($("alpha").value); showSettings(); changed(); answerAgain(); });
$("alpha-reset").addEventListener("click", () => {
  state.alpha = null;
  $("alpha").value = typeof state.soup.alpha.default === "number" ? state.soup.alpha.default : state.soup.alpha.min;
  showSettings();
  changed();
});
$("rule").addEventListener("change", () => { changed(); answerAgain(); });
for (const part of ["sampling", "instructions"]) $(part).addEventListener("input", () => { showSettings(); remember(); });
addEventListener("hashchange", () => { if (state.soup) { sayRefused(restore(location.hash)); changed(); showSettings(); } });
dark.addEventListener("change", () => { if (state.soup) changed(); });
load();
