/** @file A run's event files: every step once, also after an interruption, the same while training and from metrics.jsonl. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { afterAll, expect, test } from "vitest";
import { Backbone } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import type { TrainOptions } from "./events.ts";
import { type EvaluationMetrics, readMetrics, type StepMetrics } from "./metrics.ts";
import { writeEvents } from "./tensorboard.ts";
import { writeRows } from "./testing.ts";
import { train } from "./train.ts";

const model = join(import.meta.dirname, "../../assets/tiny-llama");
const directory = mkdtempSync(join(tmpdir(), "milora-tensorboard-"));
const backbone = await Backbone.load(model);
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

const colours = ["red", "green", "blue", "white", "black", "grey"];
const rows = colours.map((output, i) => ({ instruction: `What colour has thing ${i}?`, output, answer: output }));
const data = writeRows(join(directory, "rows.jsonl"), rows);

const config = (name: string): TrainingConfigInput => ({
  model,
  method: "milora",
  adapter: { r: 2, target_modules: ["q_proj", "v_proj", "up_proj"], top_k: 1 },
  data: { train: data, dev: 2 / 6 },
  batch_size: 2,
  max_steps: 5,
  eval_every: 2,
  checkpoint_every: 2,
  tensorboard: true,
  output_dir: join(directory, name),
});

interface Read {
  readonly step: number;
  readonly wallTime: number;
  readonly tags: readonly string[];
  readonly values: readonly number[];
}

type Fields = Map<number, (number | Uint8Array)[]>;

function fieldsOf(bytes: Uint8Array): Fields {
  const fields: Fields = new Map();
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    const value =
      type === WireType.Varint
        ? Number(reader.int64())
        : type === WireType.Bit64
          ? reader.double()
          : type === WireType.Bit32
            ? reader.float()
            : reader.bytes();
    fields.set(field, [...(fields.get(field) ?? []), value]);
  }
  return fields;
}

const text = (bytes: unknown): string => new TextDecoder().decode(bytes as Uint8Array);

/** All events of a run's files that have numbers; `start` where readers are told to begin anew. */
function eventsOf(run: string): { events: Read[]; start: number[]; config: string } {
  const names = readdirSync(join(run, "tensorboard")).filter((name) => name.includes("milora"));
  for (const name of names) expect(name).toMatch(/^events\.out\.tfevents\.\d{10}\.milora\.\d+$/);
  const file = Buffer.concat(names.sort().map((name) => readFileSync(join(run, "tensorboard", name))));
  const events: Read[] = [];
  const start: number[] = [];
  let config = "";
  for (let at = 0, next = 0; at < file.length; at = next) {
    const length = Number(file.readBigUInt64LE(at));
    next = at + 16 + length;
    const fields = fieldsOf(file.subarray(at + 12, at + 12 + length));
    const step = (fields.get(2)?.[0] ?? 0) as number;
    if (fields.has(7)) start.push(step);
    const summary = fields.get(5)?.[0];
    if (summary === undefined) continue;
    const values = fieldsOf(summary as Uint8Array)
      .get(1)!
      .map((value) => fieldsOf(value as Uint8Array));
    const tags = values.map((value) => text(value.get(1)![0]));
    if (tags[0] === "config/text_summary") config = text(fieldsOf(values[0]!.get(8)![0] as Uint8Array).get(8)![0]);
    else {
      const wallTime = fields.get(1)![0] as number;
      events.push({ step, wallTime, tags, values: values.map((value) => value.get(2)![0] as number) });
    }
  }
  return { events, start, config };
}

/** What the numbers of metrics.jsonl are called in TensorBoard, a second way. */
function wantedOf(line: StepMetrics | EvaluationMetrics): Record<string, number> {
  if (line.type === "evaluation") {
    const { dev_loss, dev_perplexity, routing } = line;
    return { "eval/loss": dev_loss, "eval/perplexity": dev_perplexity, "routing/distinct_routes": routing!.routes };
  }
  return {
    "train/loss": line.loss,
    "train/lm_loss": line.lm_loss,
    "train/information": line.auxiliary.information!,
    "train/learning_rate": line.lr,
    "train/grad_norm": line.grad_norm,
    "train/tokens_per_second": line.tokens_per_second,
    "activation/loss": line.activation!.loss,
    "experts/layer_0/q_proj": line.expert_shares![0]![0]!,
    "experts/layer_3/up_proj": line.expert_shares![3]![2]!,
  };
}

function requireEqual(run: string): void {
  const { events, start, config: shown } = eventsOf(run);
  const lines = readMetrics(join(run, "metrics.jsonl"));
  expect(start).toEqual([0]);
  expect(JSON.parse(shown)).toMatchObject({ method: "milora", adapter: { top_k: 1 } });
  expect(events.map(({ step, tags }) => [step, tags[0]])).toEqual(
    lines.map(({ step, type }) => [step, type === "step" ? "train/loss" : "eval/loss"]),
  );
  for (const [i, { tags, values }] of events.entries()) {
    const found = Object.fromEntries(tags.map((tag, j) => [tag, values[j]]));
    const wanted = Object.entries(wantedOf(lines[i]!)).map(([tag, value]) => [tag, Math.fround(value)]);
    expect(found).toMatchObject(Object.fromEntries(wanted));
  }
  const times = events.map(({ wallTime }) => wallTime);
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(Math.abs(times.at(-1)! - Date.now() / 1000)).toBeLessThan(3600);
}

const run = (input: TrainingConfigInput, options: TrainOptions = {}) => train(input, { backbone, ...options });

test("a run, interrupted and resumed, with every step once", async () => {
  const input = config("interrupted");
  const stop = new AbortController();
  await run(input, {
    signal: stop.signal,
    onProgress: (event) => {
      if (event.type === "step" && event.metrics.step === 3) stop.abort();
    },
  });
  requireEqual(input.output_dir);
  const before = readdirSync(join(input.output_dir, "tensorboard"));
  // As after a kill: the newest checkpoint is older than the last steps.
  rmSync(join(input.output_dir, "checkpoints/step-3"), { recursive: true });
  expect(await run(input, { resume: true })).toMatchObject({ steps: 5 });
  requireEqual(input.output_dir);
  const after = readdirSync(join(input.output_dir, "tensorboard")).sort(); // readers go by name
  expect(after).toEqual([...before, expect.stringMatching(/\.milora\.2$/)]);
  expect(eventsOf(input.output_dir).events.filter(({ tags }) => tags.includes("train/loss")).length).toBe(5);
});

test("a finished run that was trained without them", async () => {
  const input = { ...config("converted"), tensorboard: false };
  await run(input);
  expect(readdirSync(input.output_dir)).not.toContain("tensorboard");
  expect(writeEvents(input.output_dir)).toBe(
    join(input.output_dir, "tensorboard", readdirSync(join(input.output_dir, "tensorboard"))[0]!),
  );
  requireEqual(input.output_dir);
  writeFileSync(join(input.output_dir, "tensorboard/events.out.tfevents.1.other"), "not ours");
  const path = writeEvents(input.output_dir);
  expect(path).toMatch(/\.milora\.2$/);
  requireEqual(input.output_dir);
  expect(writeEvents(input.output_dir)).toMatch(/\.milora\.3$/);
  requireEqual(input.output_dir);
  const names = readdirSync(join(input.output_dir, "tensorboard")).map((name) => /[^.]+\.[^.]+$/.exec(name)![0]);
  expect(names.sort()).toEqual(["1.other", "milora.2", "milora.3"]); // the second is empty
});

test("no event file of a run that is going on, or of none", () => {
  const path = join(directory, "converted/training.lock");
  writeFileSync(path, `${process.ppid}\n`); // somebody who lives
  expect(() => writeEvents(join(directory, "converted"))).toThrow(/another process is training/);
  rmSync(path);
  expect(() => writeEvents(join(directory, "nothing"))).toThrow(expect.objectContaining({ code: "FILE_UNREADABLE" }));
});
