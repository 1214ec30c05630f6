/** @file Mixed data: proportions of an epoch, order, refusals, and a run on a mix that is resumed bit for bit. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../models/index.ts";
import { MixOrder, Order, quotas } from "./batches.ts";
import { resolveTrainingConfig, type TrainingConfigInput } from "./config.ts";
import { type DataOptions, loadData, trainOrder } from "./data.ts";
import type { StepMetrics } from "./metrics.ts";
import { writeRows } from "./testing.ts";
import { train } from "./train.ts";

const model = join(import.meta.dirname, "../../assets/tiny-llama");
const tokenizer = Tokenizer.load(model);
const directory = mkdtempSync(join(tmpdir(), "milora-mix-"));
afterAll(() => rmSync(directory, { recursive: true }));

function file(name: string, count: number): string {
  return writeRows(
    join(directory, name),
    Array.from({ length: count }, (_, i) => ({ prompt: `${name} ${i}?`, completion: `${i}` })),
  );
}
const small = file("small.jsonl", 4);
const middle = file("middle.jsonl", 10);
const large = file("large.jsonl", 16);
const base = { template: "none", dev: 0, maxLength: 40, seed: 3 } as const;
const load = (options: Pick<DataOptions, "train"> & Partial<DataOptions>) =>
  loadData(tokenizer, { ...base, ...options });

describe("quotas", () => {
  it("gives an epoch's examples to the parts by their weights, none too many or too few", () => {
    expect(quotas([4, 10, 16], [1, 1, 1])).toEqual([10, 10, 10]);
    expect(quotas([3, 4], [1, 1])).toEqual([4, 3]);
    expect(quotas([10, 10, 11], [0.5, 0.3, 0.2])).toEqual([16, 9, 6]);
    expect(quotas([5, 95], [1e-9, 1])).toEqual([0, 100]);
  });
});

describe("MixOrder", () => {
  const sizes = [4, 10, 16];
  const weights = [2, 1, 1]; // 15, 8 (of 7.5), 7 (of 7.5) of 30
  const positions = (epochs: number) => Array.from({ length: epochs * 30 }, (_, i) => i);
  const partOf = (index: number) => (index < 4 ? 0 : index < 14 ? 1 : 2);

  it("has the same proportions in every epoch, and goes through each part evenly", () => {
    const order = new MixOrder(sizes, weights, 5, "x");
    const all = positions(8).map((position) => order.at(position));
    for (let epoch = 0; epoch < 8; epoch++) {
      const counts = [0, 0, 0];
      for (const index of all.slice(epoch * 30, epoch * 30 + 30)) counts[partOf(index)]!++;
      expect(counts).toEqual([15, 8, 7]);
    }
    const seen = new Array<number>(30).fill(0);
    for (const index of all) seen[index]!++;
    for (const part of [0, 1, 2]) {
      const own = seen.filter((_, index) => partOf(index) === part);
      expect(Math.max(...own) - Math.min(...own)).toBeLessThanOrEqual(1);
    }
    expect(all.slice(0, 30).map(partOf)).not.toEqual(all.slice(30, 60).map(partOf));
    expect(all.slice(0, 15).map(partOf)).not.toEqual(new Array(15).fill(0));
  });

  it("is the same from any position, and another for another seed", () => {
    const order = new MixOrder(sizes, weights, 5, "x");
    const all = positions(3).map((position) => order.at(position));
    for (const position of [61, 30, 7, 89])
      expect(new MixOrder(sizes, weights, 5, "x").at(position)).toBe(all[position]);
    const other = new MixOrder(sizes, weights, 6, "x");
    expect(positions(3).map((position) => other.at(position))).not.toEqual(all);
  });
});

describe("loadData of several sources", () => {
  it("takes every row once an epoch without weights, as from one file", async () => {
    const data = await load({ train: [small, { path: middle, name: "mid" }] });
    expect(data.sources).toEqual([
      { name: small, rows: 4, perEpoch: 4 },
      { name: "mid", rows: 10, perEpoch: 10 },
    ]);
    expect(data.train.map(({ source }) => source)).toEqual([0, 0, 0, 0, ...new Array(10).fill(1)]);
    expect(trainOrder(data, 3)).toBeInstanceOf(Order);
    expect(data.warnings).toEqual([]);
  });

  it("says what weights make of it, and knows mixes apart by their weights", async () => {
    const weighted = (weight: number) =>
      load({
        train: [
          { path: small, name: "a", weight },
          { path: large, name: "b", weight: 1 },
        ],
      });
    const data = await weighted(1);
    expect(data.warnings).toEqual([
      "a: 10 of the 20 rows of an epoch, each of its 4 rows 2.5 times",
      "b: 10 of the 20 rows of an epoch, each of its 16 rows 0.625 times",
    ]);
    expect(trainOrder(data, 3)).toBeInstanceOf(MixOrder);
    expect((await weighted(1)).digest).toBe(data.digest);
    expect((await weighted(3)).digest).not.toBe(data.digest);
  });

  it("has a template and columns of its own for each source", async () => {
    const path = join(directory, "named.jsonl");
    writeFileSync(path, '{"q":"Why?","a":"So."}\n');
    const { train: examples } = await load({
      maxLength: 200,
      train: [small, { path, columns: { instruction: "q", output: "a" }, template: "alpaca" }],
    });
    const text = tokenizer.decode(examples.at(-1)!.tokens);
    expect(tokenizer.decode(examples[0]!.tokens)).toBe("small.jsonl 0?0");
    expect(text).toContain("Below is an instruction");
  });

  it("splits the dev share off each source, and leaves out rows of earlier sources", async () => {
    const shared = join(directory, "shared.jsonl");
    writeFileSync(
      shared,
      `${readFileSync(small, "utf8")}\n{"prompt":"new","completion":"x"}\n{"prompt":"b","completion":"y"}`,
    );
    const split = await load({ train: [middle, large], dev: 0.25 });
    expect(split.sources.map(({ rows }) => rows)).toEqual([10 - 3, 16 - 4]); // a share of 2.5 rows is 3
    expect(split.dev).toHaveLength(3 + 4);
    const { warnings, train: examples } = await load({
      train: [small, shared],
      dev: [middle, { path: large, name: "l" }],
    });
    expect(examples).toHaveLength(6);
    expect(warnings).toEqual([`${shared}: 4 rows of 6 left out, the same as an earlier row`]);
  });

  it("refuses names that are there twice, weights for some only, and weights that come to nothing", async () => {
    await expect(load({ train: [small, { path: small, weight: 1 }] })).rejects.toThrow(
      /2 problems: ".*small\.jsonl" is there twice.*; ".*small\.jsonl": no weight, but others have one/,
    );
    const tiny = { path: small, name: "s", weight: 1e-6 };
    await expect(load({ train: [tiny, { path: large, weight: 1 }] })).rejects.toThrow(
      /"s": the weight is less than one row of the 20 of an epoch/,
    );
  });
});

describe("a run on a mix", () => {
  const config = (name: string): TrainingConfigInput => ({
    model,
    method: "lora",
    adapter: { r: 2, target_modules: ["q_proj"] },
    data: {
      train: [
        { path: small, name: "small", weight: 1 },
        { path: large, name: "large", weight: 1 },
      ],
      dev: [middle],
      template: "none",
    },
    batch_size: 6,
    max_steps: 5,
    eval_every: 100,
    checkpoint_every: 1,
    output_dir: join(directory, name),
  });
  const steps = (name: string): StepMetrics[] =>
    readFileSync(join(directory, name, "metrics.jsonl"), "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as StepMetrics)
      .filter(({ type }) => type === "step");
  const adapter = (name: string) => readFileSync(join(directory, name, "checkpoints/step-5/adapter_model.safetensors"));

  it("counts rows and tokens of each source, and goes on after an interruption with the same bytes", async () => {
    await train(config("whole"));
    const counts = steps("whole").map(({ sources }) => sources!);
    const firstEpoch = counts.slice(0, 4); // 20 rows in batches of 6, 6, 6, 2
    expect(firstEpoch.map(({ small: a, large: b }) => a!.rows + b!.rows)).toEqual([6, 6, 6, 2]);
    expect(firstEpoch.reduce((sum, { small: a }) => sum + a!.rows, 0)).toBe(10);
    for (const [i, step] of steps("whole").entries()) {
      expect(counts[i]!.small!.tokens + counts[i]!.large!.tokens).toBe(step.tokens);
    }
    const controller = new AbortController();
    const result = await train(config("parts"), {
      signal: controller.signal,
      onProgress: (event) => event.type === "step" && event.metrics.step === 2 && controller.abort(),
    });
    expect(result.stoppedBecause).toBe("interrupted");
    await train(config("parts"), { resume: true });
    expect(steps("parts").map(({ sources }) => sources)).toEqual(counts);
    expect(adapter("parts").equals(adapter("whole"))).toBe(true);
  });
});

describe("the config of a mix", () => {
  const resolve = (data: unknown) =>
    resolveTrainingConfig({ model: "m", method: "lora", output_dir: "o", data } as TrainingConfigInput);

  it("keeps sources as they are written", () => {
    const sources = ["a.jsonl", { path: "b", weight: 2, name: "b", template: "chat", columns: { prompt: "q" } }];
    expect(resolve({ train: sources, dev: ["c"] }).data).toMatchObject({ train: sources, dev: ["c"] });
  });

  it("names the problem of the source, not that nothing fits", () => {
    expect(() => resolve({ train: [{ path: "a", wieght: 1 }] })).toThrow(
      /data\.train\.0: unknown key "wieght", did you mean "weight"\?/,
    );
    expect(() => resolve({ train: [{ path: "a", weight: -1 }] })).toThrow(/data\.train\.0\.weight: /);
    expect(() => resolve({ train: 7 })).toThrow(/data\.train: expected a path, or a list of sources/);
    expect(() => resolve({ train: "a", dev: 1.5 })).toThrow(/data\.dev: .*<1/);
    expect(() => resolve({ train: "a", dev: [{ path: "b", weight: 1 }] })).toThrow(/unknown key "weight"/);
  });
});
