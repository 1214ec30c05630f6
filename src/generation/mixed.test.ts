/** @file One batch of many adapters: each row gives what it gives alone, whoever runs, joins or leaves beside it. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Random } from "../base/index.ts";
import { Adapter, methodOf, methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { Batch } from "./batch.ts";
import { BufferPool } from "./cache.ts";
import { AdapterCache } from "./derived.ts";
import { SessionCache } from "./graphs.ts";
import type { Shared } from "./prefill.ts";
import { Runner } from "./runner.ts";
import { distance, loadBackbone, smallConfig } from "./testing.ts";

interface Job {
  readonly name: string;
  readonly adapter: Adapter | undefined;
  readonly prompt: readonly number[];
  readonly tokens: number;
  /** Step at which it joins. */
  readonly start: number;
}

interface Answer {
  readonly tokens: number[];
  /** Of the last step, float32 [V]. */
  logProbs: Float32Array;
}

/** An adapter whose every number is moved away from where training begins. */
function moved(backbone: Backbone, method: string, options: Record<string, unknown> = {}, seed = 1): Adapter {
  const adapter = Adapter.create(methodOf(method), options, backbone.config, seed, backbone, { totalSteps: 10 });
  const random = new Random(99 + seed);
  for (const { key } of adapter.specs) {
    adapter.values(key).set(adapter.values(key).map((value) => value + 0.08 * random.normal()));
  }
  return adapter;
}

const greedy = (values: Float32Array): number => values.indexOf(values.reduce((a, b) => Math.max(a, b)));

/** Everything a batch takes. */
class Bench implements Disposable {
  readonly shared: Shared;
  constructor(backbone: Backbone) {
    const sessions = new SessionCache(backbone, { routes: 0 });
    const runner = new Runner();
    const adapters = new AdapterCache(backbone, sessions, runner);
    this.shared = { backbone, sessions, adapters, pool: new BufferPool(), runner, context: 200, capacity: undefined };
  }

  /** Runs jobs in one batch, each from its step on. */
  async run(jobs: readonly Job[], maxRows = jobs.length): Promise<Answer[]> {
    using batch = new Batch(this.shared, maxRows, { prompt: 4, longest: 8 });
    const answers = jobs.map((): Answer => ({ tokens: [], logProbs: new Float32Array() }));
    const waiting = new Set(jobs.keys());
    const live: number[] = [];
    for (let step = 0; waiting.size > 0 || live.length > 0; step++) {
      if (live.length > 0) await batch.step(live.map((job) => answers[job]!.tokens.at(-1)!));
      const fresh = [...waiting].filter((job) => jobs[job]!.start <= step).slice(0, maxRows - live.length);
      await batch.admit(fresh.map((job) => ({ tokens: jobs[job]!.prompt, adapter: jobs[job]!.adapter, longest: 80 })));
      for (const job of fresh) waiting.delete(job);
      live.push(...fresh);
      for (let row = live.length - 1; row >= 0; row--) {
        const answer = answers[live[row]!]!;
        answer.logProbs = batch.logProbsOf(row).slice();
        answer.tokens.push(greedy(answer.logProbs));
        if (answer.tokens.length < jobs[live[row]!]!.tokens) continue;
        batch.drop(row);
        const last = live.pop()!;
        if (row < live.length) live[row] = last;
      }
    }
    return answers;
  }

  [Symbol.dispose](): void {
    this.shared.adapters[Symbol.dispose]();
    this.shared.sessions[Symbol.dispose]();
    this.shared.pool[Symbol.dispose]();
  }
}

const PROMPTS = [[1, 5, 9], [1, 60], [7, 7, 7, 7, 7, 7], [1, 44, 23, 90, 11, 17, 3, 8, 61], [33]];

/** Backbones, and how far log-probabilities may differ: 4-bit products round x to 8 bits, so that little differences jump. */
const BACKBONES: Readonly<Record<string, [load: () => Promise<Backbone>, tolerance: number]>> = {
  "llama-gqa": [() => loadBackbone("llama-gqa"), 1e-4],
  "llama-tied": [() => loadBackbone("llama-tied"), 1e-4],
  "int4, three query heads for one of keys": [
    async () => Backbone.random({ ...smallConfig, numHeads: 6 }, { weights: "int4", seed: 2 }),
    5e-2,
  ],
};

describe.each(Object.entries(BACKBONES))("%s", (_, [load, tolerance]) => {
  let backbone: Backbone;
  let bench: Bench;
  const adapters: [string, Adapter | undefined][] = [["bare", undefined]];
  beforeAll(async () => {
    backbone = await load();
    bench = new Bench(backbone);
    for (const method of methods.keys()) adapters.push([method, moved(backbone, method)]);
    const more: [string, Record<string, unknown>][] = [
      ["lora", { r: 3 }],
      ["lora", { r: 20, target_modules: ["q_proj", "down_proj"] }],
      ["dora", { r: 5, target_modules: ["v_proj", "up_proj"] }],
      ["milora", { r: 4, top_k: 2, gate: "probability" }],
      ["milora", { r: 8, top_k: 1, target_modules: ["gate_proj", "q_proj", "o_proj"] }],
      ["midora", { r: 4, top_k: 2, gate: "renormalized" }],
      ["ia3", { target_modules: ["k_proj", "up_proj", "o_proj"], feedforward_modules: ["o_proj"] }],
    ];
    for (const [i, [method, options]] of more.entries()) {
      adapters.push([`${method} ${JSON.stringify(options)}`, moved(backbone, method, options, 5 + i)]);
    }
  });
  afterAll(() => {
    bench.shared.adapters[Symbol.dispose]();
    for (const [, adapter] of adapters) adapter?.dispose();
    bench[Symbol.dispose]();
    backbone.dispose();
  });

  const jobsOf = (which: readonly [string, Adapter | undefined][], seed: number): Job[] => {
    const random = new Random(seed);
    const shuffled = which.map((one) => [random.uniform(), one] as const).toSorted(([a], [b]) => a - b);
    return shuffled.map(([, [called, adapter]], i) => ({
      name: called,
      adapter,
      prompt: PROMPTS[i % PROMPTS.length]!,
      tokens: 3 + Math.floor(random.uniform() * 12),
      start: Math.floor(random.uniform() * 8),
    }));
  };

  const expectAlone = async (jobs: readonly Job[], answers: readonly Answer[]): Promise<void> => {
    for (const [i, job] of jobs.entries()) {
      const [alone] = (await bench.run([job])) as [Answer];
      expect(answers[i]!.tokens, job.name).toEqual(alone.tokens);
      expect(distance(answers[i]!.logProbs, alone.logProbs), job.name).toBeLessThan(tolerance);
    }
  };

  test.each([1, 2, 3])("rows of every method join and leave (%i)", async (seed) => {
    const jobs = jobsOf([...adapters, ...adapters.slice(0, 6)], seed);
    await expectAlone(jobs, await bench.run(jobs));
  });
});
