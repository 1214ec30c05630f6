/** @file Decoding of many sequences under one adapter, under as many adapters as sequences, and bare: steps, joining, bytes. */

// Rows join and leave as the scheduler makes them, so batches are taken from inside that room.
import { Batch } from "../src/generation/batch.ts";
import type { AdapterPrecision } from "../src/generation/index.ts";
import { Bench } from "../src/generation/testing.ts";
import type { Adapter } from "../src/methods/index.ts";
import { Backbone } from "../src/models/index.ts";
import { configureRuntime } from "../src/runtime/index.ts";
import { randomAdapter } from "./lib/adapters.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions, selected } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { shapeOf } from "./lib/shapes.ts";
import { quantile, ratios, summarize } from "./lib/statistics.ts";

const USAGE = `npm run mixed -- [options]
  --shape NAME    shape of the backbone (smollm2-135m)
  --weights FORM  float32, int4 or int8 (int4)
  --rows N        sequences that decode together (16)
  --ranks A,B     ranks of the adapters (32,16,8)
  --precision P   what decoding holds adapters as (int8; float32, float16)`;

const PROMPT = 96;
/** Steps of a round, of which the median counts. */
const STEPS = 9;

interface Case {
  readonly name: string;
  /** What it is compared with, besides bare. */
  readonly alone?: string;
  /** Of each row. */
  readonly adapters: readonly (Adapter | undefined)[];
}

/** A case at work. */
class Stream implements Disposable {
  readonly one: Case;
  readonly steps: number[] = [];
  /** The step after a row was replaced by a new one of the same adapter. */
  readonly joins: number[] = [];
  readonly #batch: Batch;
  /** Of each row, as rows change their places. */
  readonly #adapters: (Adapter | undefined)[];
  #replaced = 0;

  constructor(one: Case, bench: Bench) {
    this.one = one;
    this.#adapters = [...one.adapters];
    this.#batch = new Batch(bench.shared, one.adapters.length, { prompt: PROMPT, longest: 2 * PROMPT + 512 });
  }

  async start(vocabulary: number): Promise<this> {
    const text = (seed: number) => Array.from({ length: PROMPT }, (_, i) => (i * 7919 + seed * 104_729) % vocabulary);
    await this.#batch.admit(this.one.adapters.map((adapter, row) => ({ tokens: text(row), adapter })));
    return this;
  }

  get bytes(): number {
    return this.#batch.itemBytes;
  }

  async round(counts: boolean): Promise<void> {
    const times: number[] = [];
    for (let i = 0; i < STEPS; i++) times.push(await this.#step());
    const row = this.#replaced++ % this.#batch.rows;
    const adapter = this.#adapters[row];
    this.#batch.drop(row); // the last row takes its place
    this.#adapters[row] = this.#adapters.at(-1);
    this.#adapters[this.#batch.rows] = adapter;
    await this.#batch.admit([{ tokens: [1, 2, 3, 4], adapter }]);
    const join = await this.#step();
    if (!counts) return;
    this.steps.push(quantile(times, 0.5));
    this.joins.push(join);
  }

  [Symbol.dispose](): void {
    this.#batch[Symbol.dispose]();
  }

  async #step(): Promise<number> {
    const before = performance.now();
    await this.#batch.step(new Array<number>(this.#batch.rows).fill(7));
    return performance.now() - before;
  }
}

await main(async () => {
  const values = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    weights: { type: "string", default: "int4" },
    rows: { type: "string", default: "16" },
    ranks: { type: "string", default: "32,16,8" },
    precision: { type: "string", default: "int8" },
  });
  const rounds = integer(values.rounds ?? "7", "rounds");
  const rows = integer(values.rows, "rows");
  const ranks = values.ranks.split(",").map((rank) => integer(rank, "ranks"));
  const machine = await inspectMachine({ allowBusy: values["allow-busy"] });
  configureRuntime({ threads: integer(values.threads, "threads") });
  using backbone = Backbone.random(shapeOf(values.shape), { weights: values.weights as "float32" | "int4" | "int8" });
  const { config } = backbone;
  const made: Adapter[] = [];
  const many = (method: string, options: object): Adapter[] => {
    const adapters = Array.from({ length: rows }, () => randomAdapter(method, { ...options }, config));
    made.push(...adapters);
    return adapters;
  };
  const same = <T>(value: T): T[] => new Array<T>(rows).fill(value);
  const cases: Case[] = [{ name: "bare", adapters: same(undefined) }];
  const add = (called: string, method: string, options: object): void => {
    if (!selected(values.only, called)) return;
    const adapters = many(method, options);
    cases.push({ name: `${called}, one adapter`, adapters: same(adapters[0]) });
    cases.push({ name: `${called}, ${rows} adapters`, alone: `${called}, one adapter`, adapters });
  };
  for (const r of ranks) add(`MiLoRA k=3 r=${r}`, "milora", { r, top_k: 3 });
  add(`LoRA r=${ranks[0]}`, "lora", { r: ranks[0] });

  const precision = values.precision as AdapterPrecision;
  using bench = new Bench(backbone, undefined, config.maxPositions, precision);
  const streams: Stream[] = [];
  try {
    for (const one of cases) streams.push(await new Stream(one, bench).start(config.vocabSize));
    for (let round = 0; round <= rounds; round++) {
      for (const stream of streams) await stream.round(round > 0); // the first round warms up
    }
    const of = (name: string) => streams.find(({ one }) => one.name === name)!.steps;
    const results = streams.map(({ one, steps, joins, bytes }) => ({
      name: one.name,
      stepMs: summarize(steps),
      joinMs: summarize(joins),
      itemBytes: bytes,
      throughputOfBare: ratios(of("bare"), steps),
      ...(one.alone && { throughputOfOne: ratios(of(one.alone), steps) }),
    }));
    const text = table(
      [`${rows} sequences`, "ms a step", "tokens/s", "× bare", "× one adapter", "step after a join", "items"],
      results.map(({ name, stepMs, joinMs, itemBytes, throughputOfBare, throughputOfOne }) => [
        name,
        spread(stepMs, 1),
        ((1000 * rows) / stepMs.median).toFixed(0),
        spread(throughputOfBare),
        throughputOfOne ? spread(throughputOfOne) : "",
        spread(joinMs, 1),
        itemBytes ? megabytes(itemBytes) : "",
      ]),
    );
    const settings = { shape: values.shape, weights: values.weights, rows, ranks, precision, rounds, prompt: PROMPT };
    report(
      precision === "int8" ? "mixed" : `mixed-${precision}`,
      machine,
      rounds < 5 || values.only !== undefined,
      text,
      { settings, results },
    );
  } finally {
    for (const stream of streams) stream[Symbol.dispose]();
    for (const adapter of made) adapter.dispose();
  }
});
