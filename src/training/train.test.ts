/** @file Whole runs on a small backbone: learning, evaluation, checkpoints, interruption, SIGKILL, and resumption bit for bit. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../base/index.ts";
import { Adapter } from "../methods/index.ts";
import { Backbone, readSafetensors, writeSafetensors } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import type { TrainingEvent, TrainOptions } from "./events.ts";
import type { EvaluationMetrics } from "./metrics.ts";
import { readRunConfig } from "./run-directory.ts";
import { cutModel, metricsOf, outcomeOf, shortRuns, writeRows } from "./testing.ts";
import { train } from "./train.ts";

const root = join(import.meta.dirname, "../..");
const directory = mkdtempSync(join(tmpdir(), "milora-train-"));

const model = cutModel(directory);
const backbone = await Backbone.load(model);
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

const colours = ["red", "green", "blue", "white"];
const random = new Random(5);
const rows = Array.from({ length: 28 }, (_, i) => ({
  instruction: `${"Say it. ".repeat(random.integer(4))}What colour has thing ${i}?`,
  output: colours[i % 4],
}));
const data = writeRows(join(directory, "rows.jsonl"), rows);

const config = shortRuns(directory, { model, method: "milora", data: { train: data, dev: 4 / 28 }, seed: 11 });

const run = (input: TrainingConfigInput, options: TrainOptions = {}) => train(input, { backbone, ...options });

let straight: unknown;
async function straightOutcome(): Promise<unknown> {
  if (straight === undefined) {
    const input = config("straight");
    await run(input);
    straight = outcomeOf(input.output_dir);
  }
  return straight;
}

/** Stops a run in-process once `step` steps are done. */
function stopAfter(step: number): { signal: AbortSignal; onProgress: (event: TrainingEvent) => void } {
  const controller = new AbortController();
  return {
    signal: controller.signal,
    onProgress: (event) => {
      if (event.type === "step" && event.metrics.step === step) controller.abort();
    },
  };
}

describe("routing and runaway numbers", () => {
  it("says at each evaluation of a routed method what its routers did", async () => {
    const labelled = join(directory, "labelled.jsonl");
    writeRows(
      labelled,
      rows.map((row) => ({ ...row, answer: row.output })),
    );
    const input = config("routing", { max_steps: 2, data: { train: data, dev: labelled } });
    const evaluations: EvaluationMetrics[] = [];
    await run(input, { onProgress: (event) => event.type === "evaluation" && evaluations.push(event.metrics) });
    const { routing } = evaluations[0]!;
    expect(routing).toMatchObject({ rows: 28, label_entropy: 2 }); // four colours, seven rows each
    expect(routing!.experts).toHaveLength(7);
    for (const shares of routing!.expert_shares) expect(shares.reduce((a, b) => a + b)).toBeCloseTo(1, 3);
    for (const entropy of routing!.entropy) expect(entropy).toBeGreaterThan(0);
    for (const entropy of routing!.entropy) expect(entropy).toBeLessThanOrEqual(Math.log2(7) + 1e-4);
    expect(routing!.routes).toBeGreaterThanOrEqual(Math.max(...routing!.layer_routes));
    expect(metricsOf(input.output_dir).at(-1)).toMatchObject({ type: "evaluation", routing });

    const plain = config("no routing", { method: "lora", max_steps: 1 });
    await run(plain);
    expect(metricsOf(plain.output_dir).at(-1)).not.toHaveProperty("routing");
  });

  it("stops where the loss ran away, names the step and the rows, and keeps the last checkpoint", async () => {
    const input = config("runaway", { method: "lora", lr: 1e30, warmup_ratio: 0, checkpoint_every: 1 });
    const error = await run(input).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: "TRAINING_NOT_FINITE", exitCode: 1 });
    const { message } = error as Error;
    expect(message).toMatch(/^step 2: the loss is (NaN|-?Infinity); nothing was updated; rows: /);
    const named = new RegExp(`rows: ${data} ([\\d, ]+)\\.`).exec(message)![1]!.split(", ").map(Number);
    expect(named.length).toBeLessThanOrEqual(4);
    for (const row of named) expect(rows[row - 1]).toBeDefined();
    expect(message.endsWith(`the newest checkpoint is ${join(input.output_dir, "checkpoints/step-1")}`)).toBe(true);
    expect(readdirSync(join(input.output_dir, "checkpoints"))).toEqual(["step-1"]);
  });
});

describe("train", () => {
  it("writes the run's directory and reports progress", async () => {
    const input = config("layout");
    const events: TrainingEvent[] = [];
    const result = await run(input, { onProgress: (event) => events.push(event) });
    expect(result).toMatchObject({ steps: 8, totalSteps: 8, stoppedBecause: "finished" });
    expect(readdirSync(input.output_dir).sort()).toEqual([
      "best",
      "checkpoints",
      "config.json",
      "environment.json",
      "metrics.jsonl",
    ]);
    expect(readdirSync(join(input.output_dir, "checkpoints")).sort()).toEqual(["step-6", "step-8"]);
    expect(events[0]).toMatchObject({ type: "start", trainExamples: 24, devExamples: 4, totalSteps: 8, firstStep: 0 });
    const lines = metricsOf(input.output_dir);
    expect(lines.map(({ type, step }) => `${type} ${step}`)).toEqual([
      ...[1, 2, 3].map((n) => `step ${n}`),
      "evaluation 3",
      ...[4, 5, 6].map((n) => `step ${n}`),
      "evaluation 6",
      ...[7, 8].map((n) => `step ${n}`),
      "evaluation 8",
    ]);
    expect(lines[0]).toMatchObject({
      epoch: 0.1667,
      lr: 0,
      activation: { lr: 0 },
      auxiliary: { information: expect.any(Number) },
    });
    const layers = lines[1]!.expert_shares as number[][];
    expect(layers).toHaveLength(backbone.config.numLayers);
    for (const layer of layers) expect(layer.reduce((a, b) => a + b)).toBeCloseTo(1, 3);
    const { dev_loss, dev_perplexity } = lines[3] as { dev_loss: number; dev_perplexity: number };
    expect(dev_perplexity).toBeCloseTo(Math.exp(dev_loss), 6);
    const saved = events.filter((event) => event.type === "checkpoint").map(({ step }) => step);
    expect(saved).toEqual([2, 4, 6, 8]);
    const last = events.findLast((event) => event.type === "step");
    expect(last).toMatchObject({ totalSteps: 8, secondsLeft: 0 });
    expect(readRunConfig(input.output_dir)).toMatchObject({
      lr: 5e-3,
      adapter: { peft_type: "MILORA", r: 4, top_k: 3 },
    });
    using best = Adapter.load(result.bestDirectory!, backbone.config);
    expect(best.method.name).toBe("milora");
  });

  it("learns", async () => {
    const input = config("learns", { method: "lora", max_steps: 20, eval_every: 100, checkpoint_every: 100 });
    const result = await run(input);
    const losses = metricsOf(input.output_dir)
      .filter(({ type }) => type === "step")
      .map(({ loss }) => loss as number);
    expect(losses.slice(-5).reduce((a, b) => a + b) / 5).toBeLessThan(0.5 * losses[0]!);
    expect(result.best!.devLoss).toBeLessThan(0.5 * losses[0]!);
  });

  it("goes on bit for bit after an interruption", async () => {
    const input = config("interrupted");
    for (const step of [0, 1, 4, 6]) {
      const stop = step === 0 ? { signal: AbortSignal.abort() } : stopAfter(step);
      const stopped = await run(input, { resume: step > 0, ...stop });
      expect(stopped).toMatchObject({ steps: step, stoppedBecause: "interrupted" });
    }
    const result = await run(input, { resume: true });
    expect(result).toMatchObject({ steps: 8, stoppedBecause: "finished" });
    expect(outcomeOf(input.output_dir)).toEqual(await straightOutcome());
  });

  it("loses nothing but the steps since the last checkpoint when killed", async () => {
    const input = config("killed");
    const code = `
      import { runnerImport } from "vite";
      const options = { root: ${JSON.stringify(root)}, configFile: false, logLevel: "error", oxc: { target: "es2022" } };
      const { module } = await runnerImport(${JSON.stringify(join(import.meta.dirname, "index.ts"))}, options);
      await module.train(${JSON.stringify(input)}, { onProgress: (e) => e.type === "step" && console.log(e.metrics.step) });`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", code], {
      cwd: root,
      stdio: ["ignore", "pipe", "inherit"],
    });
    for await (const line of createInterface({ input: child.stdout })) {
      if (Number(line) >= 5) break;
    }
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(child.signalCode).toBe("SIGKILL");
    expect(existsSync(join(input.output_dir, "training.lock"))).toBe(true);
    mkdirSync(join(input.output_dir, ".best.1.abcd.tmp")); // as if it had been killed while saving
    let firstStep = -1;
    await run(input, {
      resume: true,
      onProgress: (event) => {
        if (event.type === "start") firstStep = event.firstStep;
      },
    });
    expect(firstStep).toBeGreaterThanOrEqual(4);
    expect(readdirSync(input.output_dir).sort()).toEqual([
      "best",
      "checkpoints",
      "config.json",
      "environment.json",
      "metrics.jsonl",
    ]);
    expect(outcomeOf(input.output_dir)).toEqual(await straightOutcome());
  });

  it("starts anew when a run ended before its first checkpoint", async () => {
    const input = config("young");
    await run(input, stopAfter(1));
    rmSync(join(input.output_dir, "checkpoints"), { recursive: true });
    expect(await run(input, { resume: true })).toMatchObject({ steps: 8, stoppedBecause: "finished" });
    expect(outcomeOf(input.output_dir)).toEqual(await straightOutcome());
  });

  it("has nothing to do when a finished run is resumed", async () => {
    const input = config("straight");
    const wanted = await straightOutcome();
    const before = readFileSync(join(input.output_dir, "metrics.jsonl"));
    expect(await run(input, { resume: true })).toMatchObject({ steps: 8, stoppedBecause: "finished" });
    expect(readFileSync(join(input.output_dir, "metrics.jsonl"))).toEqual(before);
    expect(outcomeOf(input.output_dir)).toEqual(wanted);
  });

  it("refuses to resume with other settings or other data, naming them", async () => {
    await straightOutcome();
    const other = config("straight", { lr: 1e-3, adapter: { r: 4, top_k: 1 } });
    await expect(run(other, { resume: true })).rejects.toMatchObject({
      code: "CHECKPOINT_MISMATCH",
      message: expect.stringMatching(/adapter\.top_k was 3, is 1; lr was 0\.005, is 0\.001/),
    });
    const changed = join(directory, "changed.jsonl");
    writeFileSync(changed, readFileSync(data, "utf8").replace('"red"', '"pink"'));
    const moved = config("straight", { data: { train: changed, dev: 4 / 28 } });
    await expect(run(moved, { resume: true })).rejects.toThrow(/data digest was/);
  });

  it("refuses a checkpoint whose files were changed", async () => {
    await straightOutcome();
    const damaged = async (name: string, damage: (path: string) => void) => {
      const input = config(name);
      cpSync(join(directory, "straight"), input.output_dir, { recursive: true });
      damage(input.output_dir);
      return await run(input, { resume: true }).catch((error) => error);
    };
    const last = "checkpoints/step-8";
    expect(await damaged("intact", () => {})).toMatchObject({ steps: 8, stoppedBecause: "finished" });
    const shorter = await damaged("shorter", (path) => truncateSync(join(path, "metrics.jsonl"), 100));
    expect(shorter).toMatchObject({ code: "CHECKPOINT_INVALID", message: expect.stringContaining("has 100 bytes") });
    const state = await damaged("state", (path) => writeFileSync(join(path, last, "state.json"), '{"format": 2}'));
    expect(state).toMatchObject({ code: "CONFIG_INVALID", message: expect.stringContaining("format") });
    const moments = await damaged("moments", (path) => {
      const file = join(path, last, "optimizer.safetensors");
      const { tensors } = readSafetensors(file);
      writeSafetensors(file, new Map([...tensors].filter(([name]) => name !== "activation.exp_avg")));
      const state = join(path, last, "state.json");
      const { sums: _, ...rest } = JSON.parse(readFileSync(state, "utf8")); // as an earlier version wrote it
      writeFileSync(state, JSON.stringify(rest));
    });
    expect(moments).toMatchObject({
      code: "CHECKPOINT_INVALID",
      message: expect.stringMatching(/activation\.exp_avg is missing, expected F32/),
    });
  });

  it("never writes over a run, and resumes nothing that is not there", async () => {
    await straightOutcome();
    await expect(run(config("straight"))).rejects.toMatchObject({ code: "RUN_EXISTS" });
    await expect(run(config("nowhere"), { resume: true })).rejects.toMatchObject({ code: "CHECKPOINT_MISSING" });
    expect(existsSync(join(directory, "nowhere"))).toBe(false);
  });

  it("keeps two runs out of one directory", async () => {
    const input = config("shared");
    const outcomes = await Promise.allSettled([run(input, stopAfter(1)), run(input, stopAfter(1))]);
    const refused = outcomes.filter(({ status }) => status === "rejected");
    expect(refused).toMatchObject([{ reason: { code: "RUN_EXISTS" } }]); // whichever came second
    expect(existsSync(join(input.output_dir, "training.lock"))).toBe(false);
  });

  it("stops early when the dev perplexity no longer falls, and keeps the best adapter", async () => {
    const input = config("early", {
      lr: 0.5,
      warmup_ratio: 0,
      eval_every: 1,
      patience: 2,
      max_steps: 30,
      method: "lora",
    });
    const result = await run(input);
    expect(result.stoppedBecause).toBe("early_stopping");
    const evaluations = metricsOf(input.output_dir).filter(({ type }) => type === "evaluation");
    const lowest = evaluations.toSorted((a, b) => (a.dev_loss as number) - (b.dev_loss as number))[0]!;
    expect(result.best).toMatchObject({ step: lowest.step, devLoss: lowest.dev_loss });
    expect(evaluations.slice(-2).map(({ best }) => best)).toEqual([false, false]);
  });

  it("refuses a tokenizer that does not belong to the model, before anything is written", async () => {
    const copy = join(directory, "other-model");
    cpSync(model, copy, { recursive: true });
    const tokenizer = JSON.parse(readFileSync(join(copy, "tokenizer.json"), "utf8"));
    tokenizer.added_tokens.push({ ...tokenizer.added_tokens[1], id: 9000, content: "<|far|>" });
    writeFileSync(join(copy, "tokenizer.json"), JSON.stringify(tokenizer));
    const far = join(directory, "far.jsonl");
    writeFileSync(far, JSON.stringify({ prompt: "say <|far|>", completion: "no" }));
    const input = config("far", { model: copy, data: { train: far, dev: 0 } });
    await expect(train(input)).rejects.toThrow(/token 9000 is beyond the model's vocabulary of 8192/);
    expect(existsSync(input.output_dir)).toBe(false);
  });

  it("trains without dev rows, then keeps the last adapter", async () => {
    const input = config("no-dev", { data: { train: data, dev: 0 }, max_steps: 2 });
    const messages: string[] = [];
    const result = await run(input, {
      onProgress: (event) => {
        if (event.type === "warning") messages.push(event.message);
      },
    });
    expect(messages).toEqual(["no dev rows: learned activations are trained with everything else"]);
    expect(result.best).toBeUndefined();
    const read = (path: string) => readFileSync(join(input.output_dir, path, "adapter_model.safetensors"));
    expect(read("best")).toEqual(read("checkpoints/step-2"));
  });
});
