/** @file Runs trained together: as each alone, to the same bytes when resumed, and one that ends or fails leaves the others. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { InputError } from "../base/index.ts";
import { Backbone } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import type { TrainingEvent, TrainingResult } from "./events.ts";
import { readMetrics } from "./metrics.ts";
import { cutModel, outcomeOf, shortRuns, writeRows } from "./testing.ts";
import { train, trainTogether } from "./train.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-together-"));

const model = cutModel(directory);
const backbone = await Backbone.load(model);
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

const rows = Array.from({ length: 28 }, (_, i) => ({
  instruction: `${"Say it. ".repeat(i % 5)}What colour has thing ${i}?`,
  output: ["red", "green", "blue", "white"][i % 4],
}));
const data = writeRows(join(directory, "rows.jsonl"), rows);

const config = shortRuns(directory, { model, method: "lora", data: { train: data, dev: 4 / 28 } });

/** A mix: two methods, three seeds, other batches, and one that has fewer steps. */
const mix = (name: string): TrainingConfigInput[] => [
  config(`${name}/a`, { seed: 1 }),
  config(`${name}/b`, { seed: 2, method: "milora", batch_size: 5, max_steps: 5 }),
  config(`${name}/c`, { seed: 3, method: "milora", lr: 1e-3, data: { train: data, dev: 0 } }),
];

function resultOf(result: PromiseSettledResult<TrainingResult> | undefined): TrainingResult {
  if (result?.status !== "fulfilled") throw result?.reason ?? new Error("no result");
  return result.value;
}

const near = (actual: number, wanted: number): boolean => Math.abs(actual - wanted) <= 1e-5 * Math.abs(wanted);

describe("trainTogether", () => {
  it("makes of each run what it is alone; one with fewer steps leaves the others to go on", async () => {
    const configs = mix("joint");
    const events: [number, TrainingEvent["type"]][] = [];
    const results = await trainTogether(configs, {
      backbone,
      onProgress: (event, run) => events.push([run, event.type]),
    });
    expect(results.map((result) => resultOf(result).steps)).toEqual([8, 5, 8]);
    expect(events.filter(([, type]) => type === "start")).toEqual([0, 1, 2].map((run) => [run, "start"]));
    for (const [i, one] of mix("single").entries()) {
      const alone = await train(one, { backbone });
      const joint = resultOf(results[i]);
      expect({ ...joint, best: undefined, seconds: 0 }).toEqual({
        ...alone,
        best: undefined,
        seconds: 0,
        directory: configs[i]!.output_dir,
        bestDirectory: join(configs[i]!.output_dir, "best"),
      });
      const [wanted, actual] = [one.output_dir, configs[i]!.output_dir].map((run) =>
        readMetrics(join(run, "metrics.jsonl")),
      );
      expect(actual!.map(({ type, step }) => [type, step])).toEqual(wanted!.map(({ type, step }) => [type, step]));
      for (const [at, line] of wanted!.entries()) {
        const [a, b] = [actual![at]!, line].map((m) => (m.type === "step" ? [m.loss, m.grad_norm] : [m.dev_loss, 1]));
        expect(near(a![0]!, b![0]!) && near(a![1]!, b![1]!), `${i}, line ${at}: ${a} and ${b}`).toBe(true);
      }
      expect(readdirSync(configs[i]!.output_dir).sort()).toEqual(readdirSync(one.output_dir).sort());
    }
  });

  it("goes on after an interruption to the same bytes", async () => {
    const controller = new AbortController();
    const interrupted = await trainTogether(mix("resumed"), {
      backbone,
      signal: controller.signal,
      onProgress(event, run) {
        if (run === 2 && event.type === "step" && event.metrics.step === 3) controller.abort();
      },
    });
    expect(interrupted.map((result) => resultOf(result).stoppedBecause)).toEqual(Array(3).fill("interrupted"));
    expect(interrupted.map((result) => resultOf(result).steps)).toEqual([3, 3, 3]);
    const results = await trainTogether(mix("resumed"), { backbone, resume: true });
    expect(results.map((result) => resultOf(result).stoppedBecause)).toEqual(Array(3).fill("finished"));
    for (const [i, { output_dir }] of mix("resumed").entries()) {
      expect(outcomeOf(output_dir)).toEqual(outcomeOf(mix("joint")[i]!.output_dir));
    }
    // All have ended: nothing is left to do.
    const again = await trainTogether(mix("resumed"), { backbone, resume: true });
    expect(again.map((result) => resultOf(result).steps)).toEqual([8, 5, 8]);
  });

  it("stops a run whose numbers are not finite, and it alone; early stopping ends one run only", async () => {
    const [good, bad, early] = await trainTogether(
      [
        config("failing/good", { seed: 1 }),
        config("failing/bad", { lr: 1e30, warmup_ratio: 0, checkpoint_every: 1 }),
        config("failing/early", { lr: 1, warmup_ratio: 0, patience: 1, eval_every: 1, max_grad_norm: 0 }),
      ],
      { backbone },
    );
    expect(resultOf(good)).toMatchObject({ stoppedBecause: "finished", steps: 8 });
    expect(bad).toMatchObject({ status: "rejected", reason: { code: "TRAINING_NOT_FINITE" } });
    const { stoppedBecause, steps } = resultOf(early);
    expect(stoppedBecause).toBe("early_stopping");
    expect(steps).toBeLessThan(8);
    const alone = await train(config("failing/alone", { seed: 1 }), { backbone });
    expect(near(resultOf(good).best!.devLoss, alone.best!.devLoss)).toBe(true);
    expect(existsSync(join(directory, "failing/bad/training.lock"))).toBe(false);
  });

  it("goes on together when the structure of one changes", async () => {
    const ssp = { method: "ssp", adapter: { r: 2, search_ratio: 0.5, target_modules: ["q_proj", "v_proj"] } };
    const structures: number[] = [];
    const results = await trainTogether([config("search/ssp", ssp), config("search/lora", { seed: 1 })], {
      backbone,
      onProgress: (event, run) => event.type === "structure" && structures.push(run, event.step),
    });
    expect(structures).toEqual([0, 4]);
    expect(results.map((result) => resultOf(result).steps)).toEqual([8, 8]);
    const alone = await train(config("search/alone", ssp), { backbone });
    expect(near(resultOf(results[0]).best!.devLoss, alone.best!.devLoss)).toBe(true);
  });

  it("tokenises equal rows once", async () => {
    using encode = vi.spyOn(backbone.tokenizer, "encode");
    const count = async (...seeds: number[]) => {
      encode.mockClear();
      const all = { data: { train: data, dev: 0 }, max_steps: 1 };
      const name = `equal/${seeds.join("-")}`;
      await trainTogether(
        seeds.map((seed) => config(`${name}/${seed}`, { ...all, seed })),
        { backbone },
      );
      return encode.mock.calls.length;
    };
    const alone = await count(0);
    expect(alone).toBeGreaterThanOrEqual(rows.length);
    expect(await count(0, 1, 2)).toBe(alone);
  });

  it("refuses what cannot be trained together before anything is written, and names all of it", async () => {
    const refused = async (...configs: TrainingConfigInput[]) => {
      const error = await trainTogether(configs, { backbone }).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(InputError);
      return (error as InputError).message;
    };
    const [first, ...others] = [
      config("refused/a"),
      config("refused/b", { weights: "int8" }),
      config("refused/a", { seed: 1 }),
      config("refused/d", { model: "elsewhere" }),
    ];
    const message = await refused(first!, ...others);
    expect(message).toMatch(/3 problems/);
    expect(message).toMatch(/config 2: weights is int8, that of the first is float32/);
    expect(message).toMatch(/config 3: output_dir .*refused\/a is that of config 1, too/);
    expect(message).toMatch(/config 4: model is elsewhere/);
    expect(await refused(first!, config("refused/full", { method: "full", adapter: {} }))).toMatch(
      /full changes the backbone itself; train it alone/,
    );
    expect(await refused(first!, config("refused/bad", { adapter: { r: -1 } }))).toMatch(/r:/);
    expect(existsSync(join(directory, "refused"))).toBe(false);
  });
});
