// What the page computes of preferences and measured points.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const source = readFileSync(new URL("../../src/http/playground/simplex.js", import.meta.url), "utf8");
const { shares, tidy, nearestOnSimplex, cell, predict, measured, neighbours, blend, rgb, TONES } =
  new Function(`${source}; return { shares, tidy, nearestOnSimplex, cell, predict, measured, neighbours, blend, rgb, TONES };`)();

/** A generator of numbers in [0, 1) that repeats itself (mulberry32). */
function numbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
const close = (a, b) => a.forEach((value, i) => assert.ok(Math.abs(value - b[i]) < 1e-9, `${a} ${b}`));
/** All preferences of n objectives in steps of 1/g. */
function grid(n, g) {
  if (n === 1) return [[g]];
  return Array.from({ length: g + 1 }, (_, k) => grid(n - 1, g - k).map(rest => [k, ...rest])).flat();
}
function points(n, g, reward) {
  return grid(n, g).map(counts => counts.map(count => count / g)).map(preference => ({ preference, mean: reward(preference) }));
}

test("weights are shares unless none is above 0 or one is no weight", () => {
  assert.deepEqual(shares([1, 0, 3]), [0.25, 0, 0.75]);
  for (const none of [[0, 0, 0], [1, -1, 1], [NaN, 1, 1], [Infinity, 1, 0], [1e308, 1e308, 1e308]]) assert.equal(shares(none), null);
});

test("a tidied preference is in hundredths that sum to 1, whatever point it comes from", () => {
  const random = numbers(1);
  for (let round = 0; round < 2000; round++) {
    const n = 2 + (round % 5);
    const point = tidy(Array.from({ length: n }, () => 4 * random() - 1.5));
    assert.equal(Math.round(point.reduce((a, b) => a + b, 0) * 1e9), 1e9);
    for (const share of point) assert.ok(share >= 0 && Math.abs(share * 100 - Math.round(share * 100)) < 1e-9, `${point}`);
  }
  close(nearestOnSimplex([2, -0.5, -0.5]), [1, 0, 0]);
});

test("a cell's corners are of the grid and their weighted mean is the preference", () => {
  const random = numbers(2);
  for (let round = 0; round < 2000; round++) {
    const n = 2 + (round % 5), g = 1 + (round % 11);
    const weights = Array.from({ length: n }, () => (random() < 0.3 ? 0 : random()));
    const mu = shares(weights);
    if (!mu) continue;
    const corners = cell(mu, g);
    assert.ok(corners.length <= n);
    for (const [weight, corner] of corners) {
      assert.ok(weight > 0 && corner.every(count => Number.isInteger(count) && count >= 0), `${corner}`);
      assert.equal(corner.reduce((a, b) => a + b, 0), g);
    }
    close(mu.map((_, j) => corners.reduce((sum, [weight, corner]) => sum + (weight * corner[j]) / g, 0)), mu);
  }
});

test("a prediction is exact at measured points, and between them where rewards are linear", () => {
  const random = numbers(3);
  for (const [n, g] of [[2, 10], [2, 3], [3, 4], [3, 10], [4, 3], [5, 2]]) {
    const matrix = Array.from({ length: n }, () => Array.from({ length: n }, random));
    const linear = mu => matrix.map(row => row.reduce((sum, value, j) => sum + value * mu[j], 0));
    const bent = mu => mu.map((share, j) => share * share + j);
    for (const point of points(n, g, bent)) close(predict(points(n, g, bent), point.preference).mean, point.mean);
    for (let round = 0; round < 50; round++) {
      const mu = shares(Array.from({ length: n }, random));
      const { mean, at } = predict(points(n, g, linear), mu);
      assert.equal(at, undefined);
      close(mean, linear(mu));
    }
  }
});

test("where the measured points are no whole grid the nearest one stands, and is named", () => {
  const some = points(3, 4, mu => mu).filter(({ preference }) => preference[0] !== 0.25);
  const { mean, at } = predict(some, [0.3, 0.4, 0.3]);
  assert.deepEqual(at, [0.5, 0.25, 0.25]);
  assert.deepEqual(mean, at);
  const uneven = [[1, 0], [0.7, 0.3], [0, 1]].map(preference => ({ preference, mean: preference }));
  close(predict(uneven, [0.85, 0.15]).mean, [0.85, 0.15]);
  const inside = [[0.9, 0.1], [0.1, 0.9]].map(preference => ({ preference, mean: preference }));
  assert.deepEqual(predict(inside, [1, 0]).at, [0.9, 0.1]);
});

test("neighbours differ by one step between two objectives", () => {
  assert.equal(neighbours(points(3, 4, mu => mu)).length, 30);
  assert.equal(neighbours(points(2, 10, mu => mu)).length, 10);
});

test("a named method is found in front.json, and nothing in what is none", () => {
  const sft = { method: "θ_sft", points: [{ preference: [0.5, 0.5], mean: [0.1, 0.2] }] };
  const front = { prompts: 8, methods: [null, sft, { method: "aba", points: 5 }, { method: "clamped", points: points(2, 2, mu => mu) }] };
  assert.equal(measured(front, "clamped", 2).points.length, 3);
  assert.deepEqual(measured(front, "clamped", 2).sft, [0.1, 0.2]);
  assert.equal(measured({ methods: front.methods.slice(2) }, "clamped", 2).sft, null);
  for (const none of [null, undefined, 5, [], {}, { methods: [] }, { methods: [null, { method: "clamped", points: [{}] }] }]) assert.equal(measured(none, "clamped", 2), null);
  for (const name of [null, "aba", "bone"]) assert.equal(measured(front, name, 2), null);
  assert.equal(measured(front, "clamped", 3), null);
});

test("text on the colour of any preference has a contrast of 4.5 and more, in light and in dark", () => {
  const luminance = channels => channels.map(value => value / 255)
    .map(value => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const ink = luminance(rgb([0.18, 0.0017, -0.0199]));
  for (const { preference } of points(6, 3, mu => mu)) {
    assert.ok(contrast(luminance(rgb(blend(preference, TONES.light.ink))), 1) >= 4.5, `${preference} in light`);
    assert.ok(contrast(luminance(rgb(blend(preference, TONES.dark.ink))), ink) >= 4.5, `${preference} in dark`);
  }
});
