/** @file How long it takes to refuse a key: whether that tells how much of it was right, or that such a key exists. Measured by `npm run fuzz` only. */
import { randomBytes } from "node:crypto";
import { Agent, request } from "node:http";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Started, startServer } from "../../src/serving/http/testing.ts";
import { openStore, type Store } from "../../src/serving/index.ts";
import { GIVEN, scratch, TIMEOUT } from "./support.ts";

const directory = scratch();
const agent = new Agent({ keepAlive: true, maxSockets: 1 });
let store: Store;
let started: Started;
let real = "";

beforeAll(async () => {
  store = await openStore({ memory: true });
  started = await startServer(join(directory.path, "data"), { auth: "required" });
}, TIMEOUT);
afterAll(async () => {
  agent.destroy();
  await started[Symbol.asyncDispose]();
  await store[Symbol.asyncDispose]();
});

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const LENGTH = 43;
const digits = (count: number): string => Array.from(randomBytes(count), (byte) => DIGITS[byte % 62]).join("");
/** The first `right` digits are those of a key that is there. */
const begunRight = (right: number) => (): string => real.slice(0, 3 + right) + digits(LENGTH - right);

/** Each is a key that was never sent before: those are remembered, and refused sooner. */
const GUESSES: Readonly<Record<string, () => string>> = {
  "nothing right": begunRight(0),
  "nothing right, once more": begunRight(0),
  "the part that lists show right (6)": begunRight(6),
  "20 of 43 right": begunRight(20),
  "39 of 43 right": begunRight(39),
  "the last 39 of 43 right": () => `mk_${digits(4)}${real.slice(7)}`,
};
/** Refused by its form, without a look at the keys: it shows that a difference would be seen. */
const CONTROL = "no key's form";

interface Moments {
  readonly mean: number;
  readonly error: number;
}

/** Of the fastest nine tenths: the rest is what else the machine does (as Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?"). */
function momentsOf(times: Float64Array, most: number): Moments {
  const kept = times.filter((time) => time <= most);
  const mean = kept.reduce((a, b) => a + b, 0) / kept.length;
  const variance = kept.reduce((a, b) => a + (b - mean) ** 2, 0) / (kept.length - 1);
  return { mean, error: variance / kept.length };
}

/** Beyond this, Welch's t says that two times differ. */
const DIFFERENT = 4.5;

async function compare(name: string, rounds: number, refuse: (key: string) => Promise<boolean>): Promise<void> {
  const kinds: Readonly<Record<string, () => string>> = { ...GUESSES, [CONTROL]: () => `mk_${digits(LENGTH - 1)}!` };
  const names = Object.keys(kinds);
  const times = new Map(names.map((kind) => [kind, new Float64Array(rounds)]));
  const order = [...names];
  for (let round = -100; round < rounds; round++) {
    for (let i = order.length - 1; i > 0; i--) {
      const j = randomBytes(1)[0]! % (i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    for (const kind of order) {
      const key = kinds[kind]!();
      const began = performance.now();
      expect(await refuse(key)).toBe(true);
      if (round >= 0) times.get(kind)![round] = (performance.now() - began) * 1000;
    }
  }
  const all = Float64Array.from(Object.keys(GUESSES).flatMap((kind) => [...times.get(kind)!])).sort();
  const most = all[Math.floor(all.length * 0.9)]!;
  const [first, ...others] = names.map((kind) => ({ kind, ...momentsOf(times.get(kind)!, most) }));
  const lines = others.map((other) => {
    const error = Math.sqrt(first!.error + other.error);
    return { kind: other.kind, difference: other.mean - first!.mean, error, t: (other.mean - first!.mean) / error };
  });
  process.stdout.write(`\n${name}: ${rounds} of each, ${first!.mean.toFixed(1)} µs where nothing is right\n`);
  process.stdout.write("| key | differs by, µs (95 %) | t |\n|---|---|---|\n");
  for (const { kind, difference, error, t } of lines) {
    process.stdout.write(`| ${kind} | ${difference.toFixed(2)} ± ${(1.96 * error).toFixed(2)} | ${t.toFixed(1)} |\n`);
  }
  for (const { kind, t } of lines) {
    if (kind === CONTROL) expect(Math.abs(t), kind).toBeGreaterThan(DIFFERENT);
    else expect(Math.abs(t), `${name}: ${kind}`).toBeLessThan(DIFFERENT);
  }
}

const ROUNDS = Math.min(GIVEN, 20_000);

test.runIf(GIVEN > 0)(
  "the store refuses all keys in the same time",
  async () => {
    await store.tenants.create({ id: "acme" });
    real = (await store.keys.create({ tenant: "acme" })).secret;
    await compare("the store", ROUNDS, async (key) => (await store.authenticate(key)) === undefined);
  },
  TIMEOUT,
);

test.runIf(GIVEN > 0)(
  "the server refuses all keys in the same time",
  async () => {
    const { store: own } = started.server.services;
    await own.tenants.create({ id: "acme" });
    real = (await own.keys.create({ tenant: "acme" })).secret;
    const url = new URL(started.url);
    const refuse = (key: string): Promise<boolean> =>
      new Promise((resolve, reject) => {
        const headers = { authorization: `Bearer ${key}` };
        const asked = request({ host: url.hostname, port: url.port, agent, path: "/v1/models", headers }, (answer) => {
          answer.resume().on("end", () => resolve(answer.statusCode === 401));
        });
        asked.on("error", reject);
        asked.end();
      });
    await compare("the server", Math.ceil(ROUNDS / 2), refuse);
  },
  TIMEOUT,
);
