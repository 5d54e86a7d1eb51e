/* What sets a preference: a slider between two objectives, a triangle of three, bars for more. All move
   `current()` through `move` and are redrawn by `draw`. */

const CORNERS = [[160, 30], [26, 262], [294, 262]];
const place = point => [0, 1].map(axis => point.reduce((sum, share, i) => sum + share * CORNERS[i][axis], 0));
/* Barycentric coordinates of a place, the nearest of the triangle. */
function preferenceAt([x, y]) {
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  return tidy([a, b, 1 - a - b]);
}

/* The colours of all preferences, painted once for light and once for dark. */
function paintTriangle(canvas) {
  const context = canvas.getContext("2d"), scale = canvas.width / 320, wash = tone("wash");
  const image = context.createImageData(canvas.width, canvas.height);
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  for (let row = 0; row < canvas.height; row++) {
    for (let column = 0; column < canvas.width; column++) {
      const x = column / scale, y = row / scale;
      const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
      const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
      const c = 1 - a - b;
      if (Math.min(a, b, c) < -0.02) continue;
      image.data.set([...rgb(blend([a, b, c], wash)), 255], 4 * (row * canvas.width + column));
    }
  }
  context.putImageData(image, 0, 0);
}
function triangle(move, select, points) {
  const canvas = node("canvas", { width: 640, height: 580, "aria-hidden": "true" });
  const outline = CORNERS.map(corner => corner.join()).join(" ");
  const grid = [1, 2, 3].flatMap(step => [0, 1, 2].map(k => {
    const [from, to] = [[k, (k + 1) % 3], [k, (k + 2) % 3]].map(([i, j]) => place([0, 1, 2].map(l => (l === i ? step / 4 : l === j ? 1 - step / 4 : 0))));
    return shape("line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1], class: "grid" });
  }));
  const spots = points.map(point => {
    const [cx, cy] = place(point.preference);
    return shape("circle", { cx, cy, r: 1.8, class: "spot" });
  });
  const labels = names().map((name, i) => shape("text", {
    x: [160, 12, 308][i], y: [18, 284, 284][i], "text-anchor": ["middle", "start", "end"][i], class: "corner",
  }, name.length > 20 ? `${name.slice(0, 19)}…` : name));
  const pins = shape("g");
  const svg = shape("svg", { viewBox: "0 0 320 292", class: "plane", role: "slider", tabindex: 0, "aria-label": "Preference in the triangle", "aria-valuemin": 0, "aria-valuemax": 100 },
    shape("polygon", { points: outline, class: "edge" }), grid, spots, labels, pins);
  const spot = ({ clientX, clientY }) => {
    const at = new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [at.x, at.y];
  };
  svg.addEventListener("pointerdown", event => {
    if (event.button) return;
    const here = spot(event);
    const distances = state.points.map(weights => {
      const [x, y] = place(shares(weights) ?? [1 / 3, 1 / 3, 1 / 3]);
      return Math.hypot(x - here[0], y - here[1]);
    });
    const nearest = distances.indexOf(Math.min(...distances));
    svg.setPointerCapture(event.pointerId);
    if (nearest !== state.at && distances[nearest] < 14) select(nearest);
    else move(preferenceAt(here));
  });
  svg.addEventListener("pointermove", event => {
    if (svg.hasPointerCapture(event.pointerId)) move(preferenceAt(spot(event)));
  });
  svg.addEventListener("keydown", event => {
    const step = event.shiftKey ? 30 : 3;
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!way) return;
    event.preventDefault();
    const [x, y] = place(shares(current()) ?? [1 / 3, 1 / 3, 1 / 3]);
    move(preferenceAt([x + way[0], y + way[1]]));
  });
  $("dial").replaceChildren(node("div", { class: "triangle" }, canvas, svg));
  paintTriangle(canvas);
  dark.addEventListener("change", () => paintTriangle(canvas));
  return () => {
    const drawn = state.points.map((weights, i) => [shares(weights), i]).filter(([point]) => point);
    drawn.sort((a, b) => (a[1] === state.at) - (b[1] === state.at));
    pins.replaceChildren(...drawn.map(([point, i]) => {
      const [x, y] = place(point), chosen = i === state.at;
      const letter = state.points.length > 1 ? [shape("text", { y: 4, "text-anchor": "middle" }, LETTERS[i])] : [];
      return shape("g", { transform: `translate(${x} ${y})`, class: chosen ? "pin chosen" : "pin" },
        shape("circle", { r: chosen ? 11 : 9, fill: colour(point) }), letter);
    }));
    const point = shares(current());
    svg.setAttribute("aria-valuenow", point ? Math.round(point[0] * 100) : 0);
    svg.setAttribute("aria-valuetext", point ? wording(point) : "no preference");
  };
}
function slider(move) {
  const input = node("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `From ${names()[0]} to ${names()[1]}` });
  input.addEventListener("input", () => move(tidy([1 - input.value / 100, input.value / 100])));
  const ends = names().map(name => node("span", {}, name));
  $("dial").replaceChildren(node("div", { class: "between" }, node("div", { class: "ends" }, ends), input));
  return () => {
    const point = shares(current()) ?? [0.5, 0.5];
    input.value = Math.round(point[1] * 100);
    input.setAttribute("aria-valuetext", wording(point));
    paint(input, { "--from": colour([1, 0], "fill"), "--to": colour([0, 1], "fill") });
  };
}
/* A number for each objective, and with `bars` a slider. */
function rows(set, bars) {
  const parts = names().map((name, i) => {
    const number = node("input", { type: "number", min: 0, step: "any", id: `weight-${i}`, "aria-label": `Weight of ${name}`, "aria-describedby": "weights-error" });
    number.addEventListener("input", () => set(i, number.value === "" ? NaN : Number(number.value), number));
    const bar = bars && node("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": name });
    if (bar) bar.addEventListener("input", () => set(i, Number(bar.value), bar));
    const share = node("output", { for: number.id });
    const about = state.soup.objectives[i].description;
    const row = node("div", { class: "weight" }, node("i", { class: "dot" }),
      node("span", { class: "name" }, name, about ? node("small", {}, about) : null), bar || null, number, share);
    return { row, number, bar, share };
  });
  $("weights").replaceChildren(...parts.map(part => part.row));
  return touched => {
    const weights = current(), point = shares(weights);
    const scale = Math.max(1, ...weights.filter(Number.isFinite));
    parts.forEach(({ row, number, bar, share }, i) => {
      paint(row, { "--own": colour(corner(i), "fill") });
      if (number !== touched) number.value = Number.isFinite(weights[i]) ? Number(weights[i].toFixed(2)) : "";
      number.setAttribute("aria-invalid", point === null && !(weights[i] > 0));
      if (bar) { bar.max = scale; if (bar !== touched) bar.value = weights[i]; }
      share.value = point ? percent(point[i]) : "–";
    });
  };
}
