/**
 * @file Reading long prompts: how long a sequence that decodes waits for one, read at once and in slices, what slices cost,
 * and what is saved where a prompt's beginning is known.
 */

// Slices are what the scheduler asks a batch for, so they are taken from inside that room.
import { Batch } from "../src/generation/batch.ts";
import { Bench, greedy } from "../src/generation/testing.ts";
import { Backbone } from "../src/models/index.ts";
import { configureRuntime } from "../src/runtime/index.ts";
import { randomAdapter } from "./lib/adapters.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions, selected } from "./lib/options.ts";
import { report, spread, table } from "./lib/report.ts";
import { shapeOf } from "./lib/shapes.ts";
import { ratios, summarize } from "./lib/statistics.ts";

const USAGE = `npm run slices -- [options]
  --shape NAME    shape of the backbone (smollm2-135m)
  --weights FORM  float32, int4 or int8 (int4)
  --tokens N      tokens of the long prompt (2048)`;

const SLICES: Readonly<Record<string, number | undefined>> = { "at once": undefined, "slices of 256": 256, layers: 1 };
const METHODS: Readonly<Record<string, readonly [method: string, options: object] | undefined>> = {
  bare: undefined,
  LoRA: ["lora", { r: 32 }],
  "MiLoRA k=3": ["milora", { r: 32, top_k: 3 }],
};

interface Round {
  /** Longest time between two tokens of the sequence that decodes, ms. */
  readonly pause: number;
  /** Of reading alone: on the clock and of the processor, ms. */
  readonly clock: number;
  readonly cpu: number;
}

await main(async () => {
  const values = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    weights: { type: "string", default: "int4" },
    tokens: { type: "string", default: "2048" },
  });
  const rounds = integer(values.rounds ?? "5", "rounds");
  const count = integer(values.tokens, "tokens");
  const machine = await inspectMachine({ allowBusy: values["allow-busy"] });
  configureRuntime({ threads: integer(values.threads, "threads") });
  const weights = values.weights as "float32" | "int4" | "int8";
  using backbone = Backbone.random(shapeOf(values.shape), { weights });
  const { vocabSize } = backbone.config;
  const text = (length: number, seed: number) =>
    Array.from({ length }, (_, i) => (i * 7919 + seed * 104_729) % vocabSize);
  const positions = { prompt: count, longest: count + 256 };
  const rows: string[][] = [];
  const data: Record<string, unknown> = {};

  for (const [name, made] of Object.entries(METHODS)) {
    if (!selected(values.only, name)) continue;
    using adapter = made && randomAdapter(made[0], { ...made[1] }, backbone.config);
    using bench = new Bench(backbone, { bytes: 2 ** 31 }, count + 512);
    /** Reads a long prompt while another sequence decodes. */
    const read = async (sliceTokens: number | undefined, tokens: readonly number[], scope: string): Promise<Round> => {
      using batch = new Batch(bench.shared, 2, positions);
      await batch.admit([{ tokens: text(128, 1), adapter, scope }]);
      let next = greedy(batch.logitsOf(0));
      let at = performance.now();
      let pause = 0;
      const step = async () => {
        await batch.step(batch.rows === 2 ? [next, 1] : [next]);
        next = greedy(batch.logitsOf(0));
        pause = Math.max(pause, performance.now() - at);
        at = performance.now();
      };
      for (let i = 0; i < 3; i++) await step();
      pause = 0;
      let clock = 0;
      let cpu = 0;
      using admission = batch.begin([{ tokens, adapter, scope }], {
        sliceTokens: sliceTokens ?? Number.POSITIVE_INFINITY,
      });
      while (admission.waiting > 0) {
        const [started, used] = [performance.now(), process.cpuUsage()];
        await admission.advance();
        clock += performance.now() - started;
        const { user, system } = process.cpuUsage(used);
        cpu += (user + system) / 1000;
        await step();
      }
      return { pause, clock, cpu };
    };
    const measured: Record<string, Round[]> = Object.fromEntries(Object.keys(SLICES).map((variant) => [variant, []]));
    const fresh: number[] = [];
    const known: number[] = [];
    for (let round = 0; round <= rounds; round++) {
      for (const [variant, sliceTokens] of Object.entries(SLICES)) {
        const result = await read(sliceTokens, text(count, 3), `${variant} ${round}`);
        if (round > 0) measured[variant]!.push(result); // the first round makes the sessions
      }
      // The last 32 tokens are another question; a routed adapter is asked the same one again.
      const half = text(count / 2, 4);
      const routed = adapter?.method.properties.routed;
      const again = [...half, ...text(32, routed ? 5 : 6)];
      const first = await read(undefined, [...half, ...text(32, 5)], `known ${round}`);
      const second = await read(undefined, again, `known ${round}`);
      if (round === 0) continue;
      fresh.push(first.clock);
      known.push(second.clock);
    }
    const whole = measured["at once"]!;
    for (const [variant, results] of Object.entries(measured)) {
      const of = (key: keyof Round) => results.map((result) => result[key]);
      const cost = ratios(
        of("cpu"),
        whole.map(({ cpu }) => cpu),
      );
      const [pause, clock] = [summarize(of("pause")), summarize(of("clock"))];
      rows.push([`${name}, ${variant}`, spread(pause, 0), spread(clock, 0), spread(cost)]);
      data[`${name}, ${variant}`] = results;
    }
    const saved = [summarize(fresh), summarize(known)] as const;
    rows.push([`${name}, ${count / 2 + 32} tokens, new`, "", spread(saved[0], 0), ""]);
    rows.push([`${name}, the same, known`, "", spread(saved[1], 0), spread(ratios(known, fresh), 3)]);
    data[`${name}, known`] = { fresh, known };
  }
  const head = ["", "longest pause (ms)", "reading (ms)", "processor time / at once"];
  const trial = rounds < 5 || values.only !== undefined;
  report(`slices-${values.shape}`, machine, trial, table(head, rows), { weights, tokens: count, rounds: data });
});
