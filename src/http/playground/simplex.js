/* Preferences as points of the simplex, and what was measured there. Pure. */

/* Weights as shares of 1; null where they are no preference. */
function shares(weights) {
  if (weights.some(weight => !Number.isFinite(weight) || weight < 0)) return null;
  const sum = weights.reduce((a, b) => a + b, 0);
  return sum > 0 && Number.isFinite(sum) ? weights.map(weight => weight / sum) : null;
}
/* The point of the simplex nearest to v. */
function nearestOnSimplex(v) {
  const sorted = [...v].sort((a, b) => b - a);
  let sum = 0, threshold = 0;
  for (const [index, value] of sorted.entries()) {
    sum += value;
    const candidate = (sum - 1) / (index + 1);
    if (value <= candidate) break;
    threshold = candidate;
  }
  return v.map(x => Math.max(x - threshold, 0));
}
/* Shares in hundredths that still sum to 1; what is nearly an edge is the edge. */
function tidy(point) {
  const near = nearestOnSimplex(point).map(share => (share < 0.025 ? 0 : Math.round(share * 100)));
  near[near.indexOf(Math.max(...near))] += 100 - near.reduce((a, b) => a + b, 0);
  return near.map(hundredths => hundredths / 100);
}

/* The measured points of a method of a front; null where there are none for so many objectives. */
function measured(front, name, objectives) {
  if (!Array.isArray(front?.methods)) return null;
  const numbers = list => Array.isArray(list) && list.length === objectives && list.every(Number.isFinite);
  const of = name => front.methods.find(method => method?.method === name && Array.isArray(method.points));
  const method = of(name);
  const points = method?.points.filter(point => numbers(point.preference) && numbers(point.mean)) ?? [];
  if (points.length < 2) return null;
  const base = of("θ_sft")?.points[0]?.mean;
  return {
    method: method.method, prompts: front.prompts, points, sft: numbers(base) ? base : null,
    units: front.objectives?.map(objective => objective.unit) ?? [],
  };
}
/* The g of a grid of spacing 1/g that holds all points; 0 where there is none. */
function spacing(points) {
  for (let g = 1; g <= 64; g++) {
    const whole = value => Math.abs(value * g - Math.round(value * g)) < 1e-6 * g;
    if (points.every(point => point.preference.every(whole))) return g;
  }
  return 0;
}
/* The corners of the cell around μ in the Freudenthal triangulation of the grid of spacing 1/g, each
   [weight, g·preference]; μ is their weighted mean. */
function cell(mu, g) {
  const tails = mu.slice(1).map((_, k) => g * mu.slice(k + 1).reduce((a, b) => a + b, 0));
  const floor = tails.map(tail => Math.floor(tail + 1e-9));
  const rest = tails.map((tail, k) => Math.max(tail - floor[k], 0));
  const order = rest.map((_, k) => k).sort((a, b) => rest[b] - rest[a] || a - b);
  const corner = [...floor], corners = [];
  for (let step = 0; step <= order.length; step++) {
    const weight = (step ? rest[order[step - 1]] : 1) - (step < order.length ? rest[order[step]] : 0);
    if (step) corner[order[step - 1]] += 1;
    if (weight > 1e-9) corners.push([weight, [g, ...corner].map((tail, k) => tail - (corner[k] ?? 0))]);
  }
  return corners;
}
/* Rewards at μ from measured points: linear in the cell of their grid, between neighbours where there
   are two objectives, else those of the nearest point (`at`). */
function predict(points, mu) {
  const mean = corners => mu.map((_, j) => corners.reduce((sum, [weight, point]) => sum + weight * point.mean[j], 0));
  if (mu.length === 2) {
    const sorted = [...points].sort((a, b) => a.preference[1] - b.preference[1]);
    const above = sorted.findIndex(point => point.preference[1] >= mu[1] - 1e-9);
    if (above > 0) {
      const [low, high] = [sorted[above - 1], sorted[above]];
      const weight = (mu[1] - low.preference[1]) / (high.preference[1] - low.preference[1]);
      return { mean: mean([[1 - weight, low], [weight, high]]) };
    }
  }
  const g = spacing(points);
  const key = (preference, scale) => preference.map(value => Math.round(value * scale)).join();
  const known = new Map(points.map(point => [key(point.preference, g), point]));
  const corners = g ? cell(mu, g).map(([weight, corner]) => [weight, known.get(key(corner, 1))]) : [[1, null]];
  if (corners.every(([, point]) => point)) return { mean: mean(corners) };
  const distance = point => point.preference.reduce((sum, share, i) => sum + Math.abs(share - mu[i]), 0);
  const nearest = points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
  return { mean: nearest.mean, at: nearest.preference };
}
/* Pairs of measured points that are neighbours on their grid. */
function neighbours(points) {
  const g = spacing(points);
  const apart = (a, b) => a.preference.reduce((sum, share, i) => sum + Math.abs(share - b.preference[i]), 0);
  return points.flatMap((a, i) => points.slice(i + 1).filter(b => Math.abs(apart(a, b) - 2 / g) < 1e-6).map(b => [a, b]));
}

/* An objective's colour, and a preference's: the mean of its objectives' in OKLab. All colours of a tone
   are equally light: `ink` carries text, `fill` stands beside it, `wash` lies under marks. */
const HUES = [[272, 0.15], [5, 0.16], [172, 0.1], [65, 0.115], [315, 0.15], [225, 0.11]];
const TONES = {
  light: { ink: [0.53, 1], fill: [0.64, 1.05], wash: [0.82, 0.75] },
  dark: { ink: [0.78, 0.8], fill: [0.72, 0.95], wash: [0.74, 0.85] },
};
function blend(point, [light, strength]) {
  const along = axis => point.reduce((sum, share, i) => {
    const [hue, chroma] = HUES[i % HUES.length];
    return sum + share * strength * chroma * axis((hue * Math.PI) / 180);
  }, 0);
  return [light, along(Math.cos), along(Math.sin)];
}
/* OKLab to sRGB, 0 to 255 (Ottosson 2020). */
function rgb([light, a, b]) {
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map(linear => {
    const value = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055;
    return Math.round(255 * Math.min(Math.max(value, 0), 1));
  });
}
