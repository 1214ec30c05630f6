/** @file Training, preparing and merging, killed at any point: what is there is whole, and going on gives what an undisturbed run gives. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Adapter } from "../../src/methods/index.ts";
import { readBackboneConfig } from "../../src/models/index.ts";
import { requireUndamaged } from "../../src/training/checkpoint.ts";
import { checkpointPath, listCheckpoints, readCheckpointState } from "../../src/training/index.ts";
import { count, type Ended, must, type Outcome, run, type Settings, sumOf } from "./children.ts";

/** Seconds of a run, with checkpoints, evaluations and a best adapter on the way. */
export const trainArgs = ({ model }: Settings, output: string): string[] => [
  ...["train", "--model", model, "--train", join(model, "../rows.jsonl"), "--method", "milora"],
  ...["adapter.r=4", "max_steps=8", "batch_size=2", "micro_batch_size=2", "checkpoint_every=1", "eval_every=2"].flatMap(
    (setting) => ["--set", setting],
  ),
  ...["--set", "data.dev=0.15", "--set", "lr=3e-3", "--set", "keep_checkpoints=2", "--output", output],
];

/** What a run computed, without how long it took. */
export function outcomeOf(run: string): string {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trim().split("\n");
  const figures = lines.map((line) => {
    const { seconds: _, tokens_per_second: __, ...rest } = JSON.parse(line) as Record<string, unknown>;
    return rest;
  });
  return `${sumOf(join(run, "best"))} ${JSON.stringify(figures)}`;
}

/** Whether there is a run that can be gone on with. */
export const isRun = (path: string): boolean =>
  ["config.json", "metrics.jsonl"].some((name) => existsSync(join(path, name))) || listCheckpoints(path).length > 0;

/** All that has a name is whole. */
export function checkRun(path: string, model: string): void {
  if (!existsSync(path)) return;
  for (const step of listCheckpoints(path)) {
    const checkpoint = checkpointPath(path, step);
    requireUndamaged(checkpoint, readCheckpointState(checkpoint));
  }
  if (existsSync(join(path, "best"))) Adapter.load(join(path, "best"), readBackboneConfig(model)).dispose();
  const odd = readdirSync(path).filter((name) => !/^(best|checkpoints|(config|environment)\.json|metrics\.jsonl|training\.lock(\.\d+)?|report\.html|\..*\.(tmp|old))$/.test(name)); // biome-ignore format: one line
  must(odd.length === 0, `${path} has ${odd.join(", ")}`);
}

/** Trains to the end whatever comes between. @param disturbed one attempt, which may be cut short */
export async function trainThrough(
  settings: Settings,
  output: string,
  disturbed: (args: readonly string[]) => Promise<Ended>,
): Promise<void> {
  // biome-ignore format: one line
  for (;;) {
    const args = [...trainArgs(settings, output), ...(isRun(output) ? ["--resume"] : [])];
    const ended = await disturbed(args);
    checkRun(output, settings.model);
    if (ended.code === 0) return;
    must(ended.killed, `training ended with ${ended.code}: ${ended.stderr}`);
  }
}

export async function killTraining(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const straight = join(settings.directory, "straight");
  let { code, ms, stderr } = await run(settings, trainArgs(settings, straight));
  must(code === 0, stderr);
  const wanted = outcomeOf(straight);
  for (let round = 0; settings.more(); round++) {
    const output = join(settings.directory, `train-${round}`);
    await trainThrough(settings, output, async (args) => {
      const ended = await run(settings, args, settings.more() ? { ms: settings.random() * ms * 1.05 } : undefined); // biome-ignore format: one line
      if (ended.killed) settings.done++;
      else if (ended.ms < ms && !args.includes("--resume")) ms = ended.ms; // the first one may have been slow by chance
      count(seen, ended.killed ? `killed with ${listCheckpoints(output).length} checkpoints` : "came to its end");
      return ended;
    });
    must(outcomeOf(output) === wanted, `${output} is not what an undisturbed run gives`);
    const left = readdirSync(output).filter((name) => /^\.|lock/.test(name));
    must(left.length === 0, `${output} keeps ${left.join(", ")}`);
    rmSync(output, { recursive: true });
  }
  return { scenario: "training, killed and resumed", seen };
}

/** Commands that write a directory, or a file, or nothing. */
export const WRITERS: Readonly<Record<string, (settings: Settings, output: string) => string[]>> = {
  "preparing a model": ({ model }, output) => ["model", "prepare", model, "--weights", "int4", "--output", output],
  "merging an adapter": ({ model, adapter }, output) => ["adapters", "merge", "--model", model, "--adapter", adapter, "--output", output], // biome-ignore format: one line
  "exporting an adapter (GGUF)": (settings, output) => exportArgs(settings, output, "gguf"),
  "converting an adapter (PEFT)": (settings, output) => exportArgs(settings, output, "peft"),
};

const exportArgs = ({ model, adapter }: Settings, output: string, format: string): string[] =>
  ["adapters", "export", "--model", model, "--adapter", adapter, "--format", format, "--output", output]; // biome-ignore format: one line

/** Three of four kills come while it writes, which takes it a moment at the end; the others at any time. */
export async function killWriter(settings: Settings, name: string): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const parent = join(settings.directory, name.replaceAll(" ", "-"));
  mkdirSync(parent);
  const output = join(parent, "output");
  const args = WRITERS[name]!(settings, output);
  const drafts = (): string[] => readdirSync(parent).filter((entry) => entry.startsWith("."));
  let began = Number.NaN;
  const since = (): boolean => {
    if (drafts().length === 0) return false;
    if (Number.isNaN(began)) began = performance.now();
    return true;
  };
  let { code, ms, stderr } = await run(settings, args, { ms: 600_000, since });
  must(code === 0, stderr);
  let writing = Number.isNaN(began) ? 5 : performance.now() - began;
  const wanted = sumOf(output);
  while (settings.more()) {
    rmSync(output, { recursive: true, force: true });
    const before = new Set(drafts());
    const begun = (): boolean => drafts().some((entry) => !before.has(entry));
    const anywhere = settings.random() < 0.25;
    const moment = anywhere ? { ms: ms * settings.random() } : { ms: writing * settings.random(), since: begun };
    const ended = await run(settings, args, moment);
    if (ended.killed) settings.done++;
    else {
      must(ended.code === 0, ended.stderr);
      if (ended.ms < ms) ms = ended.ms;
      writing *= 0.9;
    }
    if (existsSync(output)) must(sumOf(output) === wanted, `${output} is there and not whole`);
    const left = existsSync(output) ? "all there" : drafts().length > 0 ? "a hidden draft" : "nothing there";
    count(seen, ended.killed ? left : "done sooner");
  }
  rmSync(output, { recursive: true, force: true });
  must((await run(settings, args)).code === 0, "the last attempt failed");
  must(sumOf(output) === wanted, "the last attempt wrote something else");
  must(readdirSync(parent).join() === "output", `drafts stay: ${readdirSync(parent).join(", ")}`);
  return { scenario: `${name}, killed`, seen };
}
