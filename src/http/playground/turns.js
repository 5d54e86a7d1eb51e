/* The conversation: messages and their answers, one to each preference or choice. */

const mix = values => (typeof values === "number" ? fixed(values, 3)
  : Object.entries(values).map(([name, value]) => `${name} ${fixed(value, 3)}`).join(", "));
/* What an answer's end says about how it came to be, for those who want to know. */
function facts({ echo, usage, finish, seconds }) {
  const { timings } = echo;
  const rows = [["μ", mix(echo.preference)], ["α", mix(echo.alpha)], [`λ (${echo.lambda_rule})`, mix(echo.lambda)], ["c", mix(echo.coefficients)],
    ["mode", echo.cache ? `${echo.mode}, merged weights ${echo.cache === "hit" ? "were there" : "were made"} (${echo.cache})` : echo.mode]];
  if (timings) {
    rows.push(["times", ["queue", "merge", "first_token", "total"].map(name => `${name.replace("_", " ")} ${duration(timings[`${name}_ms`])}`).join(", ")]);
  }
  if (usage) {
    const rate = seconds > 0 && usage.completion_tokens > 1 ? `, ${fixed((usage.completion_tokens - 1) / seconds, 1)} a second` : "";
    rows.push(["tokens", `${usage.prompt_tokens} in the prompt, ${usage.completion_tokens} in the answer${rate}`]);
  }
  if (finish) rows.push(["end", finish === "length" ? "cut at the most tokens (length)" : finish]);
  rows.push(["soup", `${echo.soup.name} ${echo.soup.digest.slice(0, 12)}`]);
  return node("dl", {}, rows.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
}
function summary({ echo, usage, finish }) {
  const parts = [echo.timings && duration(echo.timings.total_ms), usage && `${usage.completion_tokens} tokens`, finish === "length" && "cut", echo.mode];
  return parts.filter(part => part).join(" · ");
}

/* An answer that is to come. */
function blank(point, letter) {
  const prose = node("div", { class: "prose" });
  const foot = node("div", { class: "foot" });
  const head = node("div", { class: "head" }, letter ? node("b", { class: "letter" }, letter) : null, strip(point), node("span", {}, wording(point)));
  const element = paint(node("section", { class: "answer waiting", "aria-label": `Answer ${letter ?? ""} at ${wording(point)}` }, head, prose, foot), { "--own": colour(point) });
  return { point, text: "", echo: null, element, prose, foot, drawn: true };
}
function redraw(answer) {
  if (!answer.drawn) return;
  answer.drawn = false;
  requestAnimationFrame(() => {
    answer.drawn = true;
    keepInSight(() => answer.prose.replaceChildren(...markdown(answer.text)));
  });
}
/* Changes the page; a reader who was at its end stays there. */
function keepInSight(change) {
  const talk = $("talk");
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
  change();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}
function finish(turn, answer, index) {
  answer.element.classList.remove("waiting");
  const acts = [];
  if (answer.text) acts.push(node("button", { type: "button", class: "text", onclick: () => copy(answer.text, "Answer") }, "Copy"));
  if (turn.answers.length > 1 && answer.text && state.soup.chat) {
    const on = node("button", { type: "button", class: "text on", "aria-pressed": turn.chosen === index, onclick: () => choose(turn, index) }, "Go on from this");
    acts.push(on);
  }
  const about = answer.echo && node("details", {}, node("summary", {}, summary(answer)), facts(answer));
  answer.foot.replaceChildren(...acts, about ?? "");
}
function choose(turn, index) {
  turn.chosen = index;
  turn.answers.forEach((answer, i) => {
    answer.element.classList.toggle("chosen", i === index);
    answer.foot.querySelector(".on")?.setAttribute("aria-pressed", i === index);
  });
}

/* The message of a turn, to read or to change. */
function drawAsked(turn) {
  const edit = node("button", { type: "button", class: "text", onclick: () => change(turn) }, "Edit");
  const live = node("input", { type: "checkbox", onchange: () => { state.live = live.checked; } });
  live.checked = state.live;
  const again = node("button", { type: "button", class: "text again", onclick: () => ask(turn) }, "Answer again");
  const said = node("p", { class: "said" }, turn.text);
  const long = turn.text.length > 420 || turn.text.split("\n").length > 6;
  said.classList.toggle("cut", long);
  const all = long && node("button", { type: "button", class: "text", "aria-expanded": false, onclick: () => {
    all.setAttribute("aria-expanded", !said.classList.toggle("cut"));
  } }, "Whole message");
  turn.asked.replaceChildren(said, node("div", { class: "acts" }, ...(all ? [all] : []), edit, again,
    node("label", { class: "check again" }, live, "Follow the preference")));
}
function change(turn) {
  const area = node("textarea", { rows: Math.min(12, turn.text.split("\n").length + 2), "aria-label": "The message, changed" });
  area.value = turn.text;
  const done = text => {
    if (text) { turn.text = text; drawAsked(turn); ask(turn); } else drawAsked(turn);
  };
  const acts = [
    node("button", { type: "button", class: "main", onclick: () => done(area.value.trim()) }, "Ask"),
    node("button", { type: "button", class: "quiet", onclick: () => done("") }, "Cancel")];
  area.addEventListener("keydown", event => { if (event.key === "Escape") { event.stopPropagation(); done(""); } });
  turn.asked.replaceChildren(area, node("div", { class: "acts" }, acts));
  area.focus();
}
function addTurn(text) {
  const turn = { text, answers: [], chosen: 0, asked: node("div", { class: "asked" }), answered: node("div", { class: "answers" }), failure: node("div", { class: "failure" }) };
  turn.element = node("article", { class: "turn" }, turn.asked, turn.answered, turn.failure);
  drawAsked(turn);
  state.turns.push(turn);
  $("turns").append(turn.element);
  return turn;
}
function dropAfter(turn) {
  const kept = state.turns.indexOf(turn) + 1;
  state.turns.splice(kept).forEach(later => later.element.remove());
}

/* The body for a turn as everything stands now, or null after saying what is wrong with it. */
function checked(turn) {
  const wrong = state.points.findIndex(weights => !shares(weights));
  if (wrong >= 0) {
    select(wrong);
    openPanel(true);
    $("weight-0").focus();
    return null;
  }
  try {
    $("sampling-error").textContent = "";
    return request(turn.text, state.turns.slice(0, state.turns.indexOf(turn)));
  } catch (error) {
    $("sampling-error").textContent = error.message;
    $("sampling").open = true;
    openPanel(true);
    error.input?.focus();
    return null;
  }
}
function takeEvent(turn, { name, data }) {
  if (name === "start") {
    for (const [index, answer] of turn.answers.entries()) if (data.index === undefined || data.index === index) answer.echo = data;
  } else if (name === "token") {
    const answer = turn.answers[data.index];
    answer.text += data.text;
    answer.element.classList.remove("waiting");
    answer.element.classList.add("writing");
    redraw(answer);
  } else if (name === "done") {
    const choices = data.choices ?? [data];
    for (const [index, answer] of turn.answers.entries()) {
      const choice = choices[index];
      Object.assign(answer, { text: choice.text, echo: choice.soup ? choice : data, usage: choice.usage, finish: choice.finish_reason });
      const { timings } = answer.echo;
      answer.seconds = timings && choice.usage ? (timings.total_ms - timings.first_token_ms) / 1000 : 0;
      redraw(answer);
    }
  }
}
/* Answers a turn anew; what came after it goes. */
async function ask(turn) {
  state.running?.abort();
  const body = checked(turn);
  if (!body) return;
  dropAfter(turn);
  const several = state.points.length > 1;
  turn.answers = several
    ? state.points.map((weights, i) => blank(shares(weights), LETTERS[i]))
    : Array.from({ length: body.n ?? 1 }, (_, i) => blank(shares(current()), body.n > 1 ? String(i + 1) : null));
  turn.answered.replaceChildren(...turn.answers.map(answer => answer.element));
  turn.answered.hidden = false;
  turn.answered.classList.toggle("several", turn.answers.length > 1);
  turn.failure.replaceChildren();
  turn.element.setAttribute("aria-busy", "true");
  $("spoken").textContent = "";
  choose(turn, several ? state.at : 0);
  const running = new AbortController();
  state.running = running;
  showRunning();
  try {
    const response = await call("generate", { ...body, stream: true }, running.signal);
    for await (const event of events(response)) {
      if (state.running !== running) return;
      takeEvent(turn, event);
    }
    if (state.running === running) $("spoken").textContent = "Answered";
  } catch (error) {
    if (state.running !== running) return;
    if (error.name === "AbortError") {
      $("spoken").textContent = "Stopped";
    } else {
      turn.failure.replaceChildren(node("p", { class: "error", role: "alert" }, error.message));
      if (error.status === 401) askKey(error.message, () => ask(turn));
    }
  }
  if (state.running !== running) return;
  turn.answers.forEach((answer, index) => { answer.element.classList.remove("writing"); finish(turn, answer, index); });
  turn.answered.hidden = !turn.answers.some(answer => answer.text || answer.echo);
  turn.element.removeAttribute("aria-busy");
  state.running = null;
  showRunning();
}
