/* What to expect of a preference: rewards interpolated from the measured front, and the front itself. */

function rewardBars(front, predicted) {
  return names().map((name, j) => {
    const values = [...front.points.map(other => other.mean[j]), ...(front.sft ? [front.sft[j]] : [])];
    const low = Math.min(...values), high = Math.max(...values), range = high - low || 1;
    const at = value => `${(100 * (value - low)) / range}%`;
    const track = node("span", { class: "track", "aria-hidden": "true" },
      paint(node("i", { class: "reach" }), { width: at(predicted.mean[j]) }),
      front.sft ? paint(node("i", { class: "sft" }), { left: at(front.sft[j]) }) : null);
    const row = node("div", { class: "reward", title: front.units[j] ? `${name}: ${front.units[j]}` : name },
      node("span", {}, name), track, node("output", {}, fixed(predicted.mean[j], 2)));
    return paint(row, { "--own": colour(corner(j), "fill") });
  });
}

/* The plane of two rewards: every measured preference, neighbours joined, and the current one. */
function chart(front) {
  const [width, height, left, bottom, edge] = [320, 196, 34, 28, 8];
  const axes = [0, 1];
  const area = node("div");
  const pick = which => {
    const select = node("select", { "aria-label": which ? "Reward of the upright axis" : "Reward of the level axis" },
      names().map((name, j) => node("option", { value: j, selected: j === axes[which] }, name)));
    select.addEventListener("change", () => { axes[which] = Number(select.value); draw(); });
    return select;
  };
  const swap = names().length > 2 ? [node("div", { class: "axes" }, pick(1), node("span", {}, "over"), pick(0))] : [];
  $("chart").replaceChildren(...swap, area);
  const joined = names().length <= 3 ? neighbours(front.points) : [];
  let shown = null;
  const draw = (next = shown) => {
    shown = next;
    const all = [...front.points.map(point => point.mean), ...(front.sft ? [front.sft] : [])];
    const scales = axes.map(j => {
      const values = all.map(mean => mean[j]), low = Math.min(...values), high = Math.max(...values);
      const pad = (high - low || 1) * 0.06;
      return { low: low - pad, high: high + pad, from: low, to: high };
    });
    const share = (value, { low, high }) => (value - low) / (high - low);
    const x = mean => left + share(mean[axes[0]], scales[0]) * (width - left - edge);
    const y = mean => height - bottom - share(mean[axes[1]], scales[1]) * (height - bottom - edge);
    const dot = (mean, attributes) => shape("circle", { cx: x(mean), cy: y(mean), r: 3.2, ...attributes });
    const text = (at, anchor, words, more = {}) => shape("text", { x: at[0], y: at[1], "text-anchor": anchor, ...more }, words);
    const parts = [
      shape("path", { d: `M${left} ${edge}V${height - bottom}H${width - edge}`, class: "axis" }),
      text([left, height - 14], "start", fixed(scales[0].from, 2)), text([width - edge, height - 14], "end", fixed(scales[0].to, 2)),
      text([left - 5, height - bottom], "end", fixed(scales[1].from, 2)), text([left - 5, edge + 9], "end", fixed(scales[1].to, 2)),
      text([(left + width - edge) / 2, height - 14], "middle", names()[axes[0]]),
      text([0, 0], "middle", names()[axes[1]], { transform: `translate(11 ${(height - bottom) / 2}) rotate(-90)` }),
      ...joined.map(([a, b]) => shape("line", { x1: x(a.mean), y1: y(a.mean), x2: x(b.mean), y2: y(b.mean), class: "joined" })),
      ...front.points.map(point => dot(point.mean, { fill: colour(point.preference, "fill") })),
    ];
    if (front.sft) {
      const [cx, cy] = [x(front.sft), y(front.sft)];
      parts.push(shape("path", { d: `M${cx - 4} ${cy - 4}l8 8m0-8l-8 8`, class: "cross" }), text([cx, cy - 9], cx > 0.8 * width ? "end" : "middle", "θ_sft", { class: "strong" }));
    }
    for (const { mean, point, letter, chosen } of shown ?? []) {
      parts.push(shape("g", { transform: `translate(${x(mean)} ${y(mean)})`, class: chosen ? "pin chosen" : "pin" },
        shape("circle", { r: chosen ? 9 : 7.5, fill: colour(point) }), letter ? shape("text", { y: 3.5, "text-anchor": "middle" }, letter) : null));
    }
    const label = `Measured rewards, ${names()[axes[1]]} over ${names()[axes[0]]}, and where the preference is expected`;
    area.replaceChildren(shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "front" }, parts));
  };
  return draw;
}

/* Builds the section; returns what redraws it, or nothing where nothing was measured. */
function expectation(front) {
  $("expectation").hidden = !front;
  if (!front) return () => {};
  const draw = chart(front);
  return () => {
    const all = state.points.map((weights, i) => ({ point: shares(weights), i })).filter(({ point }) => point);
    const shown = all.map(({ point, i }) => ({
      ...predict(front.points, point), point, chosen: i === state.at, letter: state.points.length > 1 ? LETTERS[i] : "",
    }));
    shown.sort((a, b) => a.chosen - b.chosen);
    draw(shown);
    const mine = shown.find(({ chosen }) => chosen);
    if (!mine) return;
    $("prediction").replaceChildren(...rewardBars(front, mine));
    const how = mine.at ? `Those of the nearest measured preference, ${wording(mine.at)}` : "Interpolated between the measured preferences around this one";
    const best = front.sft?.every((reward, j) => reward >= mine.mean[j]);
    const sft = front.sft ? ` The mark on a bar is θ_sft, which all backbones began from${best ? ": here it is at least as good in every reward" : ""}.` : "";
    const alpha = state.alpha ? ` Measured at α = 0; α is ${fixed(state.alpha, 2)} here.` : "";
    const prompts = front.prompts ? `, each the mean of ${front.prompts} prompts` : "";
    $("expectation-note").textContent = `${how}: ${front.method}${prompts}.${sft}${alpha}`;
  };
}
