// What the scripts of clients share, as ../python/common.py.
import { readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';

export const URL = process.env.LADLE_URL;
export const MODEL = process.env.LADLE_MODEL;
export const WORK = process.env.LADLE_WORK;
export const KEY = 'none';
export const ASK = [{ role: 'user', content: 'Name a dish and say what is in it.' }];
export const SEED = 7;
export const LENGTH = 24;
export const LONG = 2000;
export const SCHEMA = {
  type: 'object',
  properties: { vegan: { type: 'boolean' }, course: { enum: ['soup', 'salad', 'cake'] } },
  required: ['vegan', 'course'],
  additionalProperties: false,
};
export const PLACE = {
  type: 'object',
  properties: { city: { type: 'string', enum: ['Oslo', 'Rome'] } },
  required: ['city'],
  additionalProperties: false,
};

/** The text that /generate gives to the same question with the same seed. */
export async function generated(more = {}) {
  const body = JSON.stringify({ messages: ASK, seed: SEED, max_tokens: LENGTH, ...more });
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`${URL}/generate`, { method: 'POST', headers, body });
  return (await answer.json()).text;
}

export function same(got, expected) {
  if (!isDeepStrictEqual(got, expected)) {
    throw new Error(`${JSON.stringify(got)} is not ${JSON.stringify(expected)}`);
  }
}

/** Whether an object is what SCHEMA describes. */
export function isDish(value) {
  same(Object.keys(value).sort(), ['course', 'vegan']);
  same([typeof value.vegan, SCHEMA.properties.course.enum.includes(value.course)], ['boolean', true]);
}

export const inPlace = (city) => PLACE.properties.city.enum.includes(city);

const checks = [];

/** Adds a check of something. */
export function drives(what, check) {
  checks.push([what, check]);
}

/** Runs all checks and prints what they gave. */
export async function main(name) {
  const told = [];
  for (const [what, check] of checks) {
    let error = null;
    try {
      await check();
    } catch (wrong) {
      console.error(wrong);
      error = `${wrong}`.slice(0, 1000);
    }
    told.push({ drives: what, error });
  }
  const { version } = JSON.parse(readFileSync(`${WORK}/node_modules/${name}/package.json`));
  console.log(JSON.stringify({ version, checks: told }));
}
