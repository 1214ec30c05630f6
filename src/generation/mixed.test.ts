/** @file One batch of many adapters: each row gives what it gives alone, whoever runs, joins or leaves beside it. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Random } from "../base/index.ts";
import { type Adapter, methods } from "../methods/index.ts";
import { Backbone, sitesOf } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import { Bench, distance, greedy, loadBackbone, moved, smallConfig } from "./testing.ts";

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

class Runs extends Bench {
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
  let bench: Runs;
  const adapters: [string, Adapter | undefined][] = [["bare", undefined]];
  beforeAll(async () => {
    backbone = await load();
    bench = new Runs(backbone);
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

  const named = (...names: string[]) => names.map((one) => adapters.find(([called]) => called === one)!);

  test("rows whose methods have no items stand anywhere among the others", async () => {
    for (const order of [
      ["full", "lora", "moelora", "dora", "full"],
      ["lora", "full", "moelora", "milora"],
      ["bare", "parallel-adapter", "ia3", "bare"],
    ]) {
      const jobs = named(...order).map(([called, adapter], i) => ({
        name: called,
        adapter,
        prompt: PROMPTS[i]!,
        tokens: 6,
        start: 0,
      }));
      await expectAlone(jobs, await bench.run(jobs));
    }
  });

  test("an adapter of NaN and infinity does not reach the rows of others", async () => {
    const methodsOf = ["lora", "milora", "dora", "ia3", "bitfit", "adalora"];
    const broken = methodsOf.map((method, i) => {
      const adapter = moved(backbone, method, {}, 40 + i);
      for (const { key } of adapter.specs) {
        // Not the router's: which experts are chosen must still be said.
        if (!key.includes("router")) adapter.values(key).fill(i % 2 ? Number.POSITIVE_INFINITY : Number.NaN);
      }
      return adapter;
    });
    const sound = named("bare", "lora", "milora", "dora", "ia3", "bitfit");
    using batch = new Batch(bench.shared, 2 * sound.length, { prompt: 4, longest: 8 });
    const prompts = sound.flatMap(([, adapter], i) => [
      { tokens: PROMPTS[0]!, adapter },
      { tokens: PROMPTS[0]!, adapter: broken[i] },
    ]);
    await batch.admit(prompts);
    for (const token of [3, 4, 5]) await batch.step(prompts.map(() => token));
    for (const [i, [called, adapter]] of sound.entries()) {
      using alone = new Batch(bench.shared, 1, { prompt: 4, longest: 8 });
      await alone.admit([{ tokens: PROMPTS[0]!, adapter }]);
      for (const token of [3, 4, 5]) await alone.step([token]);
      expect(distance(batch.logProbsOf(2 * i), alone.logProbsOf(0)), called).toBeLessThan(tolerance);
      expect(batch.logProbsOf(2 * i + 1).some(Number.isNaN), `broken ${methodsOf[i]}`).toBe(true);
    }
    for (const adapter of broken) adapter.dispose();
  });

  test("rows are copied onto rows of the same and of other adapters", async () => {
    const [lora, milora] = named("lora", "milora");
    const start = [
      { tokens: PROMPTS[0]!, adapter: lora![1] },
      { tokens: PROMPTS[3]!, adapter: milora![1] },
      { tokens: PROMPTS[1]!, adapter: lora![1] },
      { tokens: PROMPTS[2]!, adapter: undefined },
    ];
    using batch = new Batch(bench.shared, 6, { prompt: 4, longest: 8 });
    await batch.admit(start);
    await batch.step([3, 4, 5, 6]);
    batch.copyRow(1, 0, 0); // another adapter
    batch.copyRow(1, 4, 0); // a new row
    batch.copyRow(1, 5, 0);
    await batch.step([7, 7, 5, 6, 8, 9]);
    batch.copyRow(4, 5, PROMPTS[3]!.length + 1); // as a beam takes another's place
    await batch.step([7, 7, 5, 6, 8, 8]);
    const expected: [number, number[]][] = [
      [1, [4, 7, 7]],
      [1, [4, 7, 7]],
      [2, [5, 5, 5]],
      [3, [6, 6, 6]],
      [1, [4, 8, 8]],
      [1, [4, 8, 8]],
    ];
    for (const [row, [from, tokens]] of expected.entries()) {
      using alone = new Batch(bench.shared, 1, { prompt: 4, longest: 8 });
      await alone.admit([start[from]!]);
      for (const token of tokens) await alone.step([token]);
      expect(distance(batch.logProbsOf(row), alone.logProbsOf(0)), `row ${row}`).toBeLessThan(tolerance);
    }
  });

  test("a row has items for the experts of its route only", async () => {
    const [[, adapter]] = named("milora") as [[string, Adapter]];
    using batch = new Batch(bench.shared, 3, { prompt: 4, longest: 8 });
    await batch.admit([{ tokens: PROMPTS[3]!, adapter }, { tokens: PROMPTS[0]! }]);
    expect(batch.itemBytes).toBe(0);
    await batch.step([5, 6]);
    const { experts } = batch.route(0)!;
    const { r } = adapter.config as { r: number };
    const active = sitesOf(backbone.config).filter(({ layer, module }) => experts[layer]!.includes(module));
    expect(active.length).toBe(3 * backbone.config.numLayers);
    // In int8 a number takes a byte, and each rank has a scale; tensors begin where a cache line does.
    const isInt8 = operators() && backbone.weights.kind === "int4";
    const bytesOf = (size: number) => (isInt8 ? Math.ceil(size / 64) * 64 : 4 * size);
    const scales = isInt8 ? Math.ceil((4 * r) / 64) * 64 : 0;
    const bytes = active.reduce(
      (sum, site) => sum + bytesOf(r * site.inFeatures) + bytesOf(r * site.outFeatures) + scales,
      0,
    );
    expect(batch.itemBytes).toBe(bytes);
    await batch.admit([{ tokens: PROMPTS[0]!, adapter }]);
    batch.drop(0);
    batch.drop(0);
    expect(batch.itemBytes).toBe(bytes); // until rows run again
    batch.truncate(0);
    expect(batch.itemBytes).toBe(0);
    await batch.admit([{ tokens: PROMPTS[0]! }, { tokens: PROMPTS[0]!, adapter: named("p-tuning-v2")[0]![1] }]);
    await batch.step([5, 6]);
    expect(batch.itemBytes).toBe(0);
  });

  test("many adapters take one session, and one alone its own where items would have to be copied", async () => {
    using fresh = new Bench(backbone);
    const kinds = async (names: string[]): Promise<string[]> => {
      const leased: string[] = [];
      const { sessions } = fresh.shared;
      const lease = sessions.lease.bind(sessions);
      sessions.lease = (program) => {
        leased.push(program.kind);
        return lease(program);
      };
      using batch = new Batch(fresh.shared, names.length, { prompt: 4, longest: 8 });
      await batch.admit(named(...names).map(([, adapter], i) => ({ tokens: PROMPTS[i]!, adapter })));
      await batch.step(names.map(() => 5));
      sessions.lease = lease;
      return leased.filter((kind) => kind === "decode" || kind === "mixed");
    };
    expect(await kinds(["lora", "lora", "lora"])).toEqual([operators() ? "mixed" : "decode"]);
    expect(await kinds(["bare"])).toEqual(["decode"]);
    expect(await kinds(["lora", "milora", "bare", "p-tuning-v2"])).toEqual(["mixed"]);
    expect(await kinds(["dora", "ia3", "bitfit", "lora"])).toEqual(["mixed"]);
    expect(await kinds(["lora", "full", "milora"])).toEqual(["mixed", "decode"]);
  });
});
