/** @file Several adapters trained in one process against one process each: steps, whole runs, peak memory. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { benchmarksDirectory } from "./lib/cache.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions, selected } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { ratios, summarize } from "./lib/statistics.ts";
import type { TogetherRound, TogetherSettings } from "./lib/together-settings.ts";
import { takeTurns, Worker } from "./lib/worker.ts";

const USAGE = `npm run together -- [options]
  --adapters N    adapters that are trained together (4)
  --method NAME   lora (default), milora, …
  --rank N        rank of the adapters (16)
  --shapes A,B    shapes whose steps are measured (tiny-llama,smollm2-135m)
  --no-runs       only steps, no whole runs`;

const WORKER = fileURLToPath(new URL("workers/together-milora.js", import.meta.url));
const MILORA = fileURLToPath(new URL("../src/cli/main.js", import.meta.url));
const ROOT = join(benchmarksDirectory, "..");

/** Sequences and tokens of a step of one adapter; eight tokens of each sequence are learned. */
const BATCHES = [
  [1, 64],
  [2, 64],
  [4, 64],
  [4, 128],
] as const;
const WEIGHTS = ["float32", "int8", "int4"] as const;

/** A case: one adapter in a process of its own, several joined in one, and several one after the other in one. */
async function measureSteps(
  name: string,
  settings: Omit<TogetherSettings, "adapters" | "joined">,
  count: number,
  rounds: number,
) {
  const start = (what: string, adapters: number, joined: boolean) =>
    Worker.start<TogetherRound>({
      name: `${name} ${what}`,
      command: process.execPath,
      args: [WORKER, JSON.stringify({ ...settings, adapters, joined } satisfies TogetherSettings)],
    });
  const workers: Worker<TogetherRound>[] = [];
  try {
    for (const [what, adapters, joined] of [
      ["alone", 1, true],
      ["joined", count, true],
      ["in turn", count, false],
    ] as const) {
      workers.push(await start(what, adapters, joined));
    }
    await takeTurns(workers, rounds);
  } finally {
    for (const worker of workers) worker.kill();
  }
  const [alone, joined, inTurn] = workers as [Worker<TogetherRound>, Worker<TogetherRound>, Worker<TogetherRound>];
  const separately = (key: keyof TogetherRound) => alone.rounds.map((round) => round[key] * count);
  const against = ({ rounds }: Worker<TogetherRound>) => ({
    ms: ratios(
      rounds.map(({ stepMs }) => stepMs),
      separately("stepMs"),
    ),
    cpu: ratios(
      rounds.map(({ cpuMs }) => cpuMs),
      separately("cpuMs"),
    ),
  });
  return {
    name,
    separateMs: summarize(separately("stepMs")),
    joined: against(joined),
    inTurn: against(inTurn),
    peakRss: { alone: alone.peakRss, joined: joined.peakRss, inTurn: inTurn.peakRss },
  };
}

/** A module that lets a process end its errors with its peak memory in KiB. */
const TELL_PEAK =
  'data:text/javascript,process.on("exit",()=>process.stderr.write("\\n"+process.resourceUsage().maxRSS))';

interface RunCost {
  readonly seconds: number;
  readonly peakRss: number;
}

/** A whole `milora train`, from the start of the process to its end. */
async function wholeRun(seeds: readonly number[], directory: string): Promise<RunCost> {
  const data = join(ROOT, "assets/data/authors/dev.jsonl");
  const args = [
    ...["train", "--model", join(ROOT, "assets/tiny-llama"), "--train", data, "--dev", "0.2", "--method", "lora"],
    ...["--set", "adapter.r=16", "--set", "batch_size=4", "--set", "micro_batch_size=1", "--set", "max_steps=10"],
    ...["--seeds", seeds.join(","), "--output", directory],
  ];
  const began = performance.now();
  const child = spawn(process.execPath, ["--import", TELL_PEAK, MILORA, ...args], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let text = "";
  child.stderr.on("data", (chunk) => {
    text += chunk;
  });
  const code = await new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", resolve);
  });
  if (code !== 0) throw new Error(text);
  return { seconds: (performance.now() - began) / 1000, peakRss: Number(text.trim().split("\n").at(-1)) * 1024 };
}

async function measureRuns(count: number, rounds: number) {
  const seeds = Array.from({ length: count }, (_, seed) => seed);
  const directory = mkdtempSync(join(tmpdir(), "milora-together-"));
  const costs: { separate: RunCost[]; together: RunCost }[] = [];
  try {
    for (let round = 0; round < rounds; round++) {
      const separate: RunCost[] = [];
      for (const seed of seeds) separate.push(await wholeRun([seed], join(directory, `${round}-alone`)));
      costs.push({ separate, together: await wholeRun(seeds, join(directory, `${round}-together`)) });
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
  const separate = costs.map((round) => round.separate.reduce((total, { seconds }) => total + seconds, 0));
  const together = costs.map((round) => round.together.seconds);
  return {
    separateSeconds: summarize(separate),
    togetherSeconds: summarize(together),
    ratio: ratios(together, separate),
    peakRss: {
      alone: Math.max(...costs.flatMap((round) => round.separate.map((cost) => cost.peakRss))),
      together: Math.max(...costs.map((round) => round.together.peakRss)),
    },
  };
}

await main(async () => {
  const options = parseOptions(USAGE, {
    adapters: { type: "string", default: "4" },
    method: { type: "string", default: "lora" },
    rank: { type: "string", default: "16" },
    shapes: { type: "string", default: "tiny-llama,smollm2-135m" },
    "no-runs": { type: "boolean", default: false },
  });
  const count = integer(options.adapters, "adapters");
  const rounds = integer(options.rounds ?? 5, "rounds");
  const common = {
    threads: integer(options.threads, "threads"),
    method: String(options.method),
    rank: integer(options.rank, "rank"),
    supervised: 8,
  };
  const machine = await inspectMachine({ allowBusy: options["allow-busy"] === true });
  const steps = [];
  for (const shape of String(options.shapes).split(",")) {
    for (const weights of WEIGHTS) {
      for (const [batch, length] of BATCHES) {
        const name = `${shape} ${weights} ${batch} × ${length}`;
        if (!selected(options.only, name)) continue;
        process.stderr.write(`${name}\n`);
        steps.push(await measureSteps(name, { ...common, shape, weights, batch, length }, count, rounds));
      }
    }
  }
  const runs = options["no-runs"] ? undefined : await measureRuns(count, rounds);
  const text = table(
    ["", `${count} alone, ms`, "joined ×", "of CPU time", "in turn ×", "peak RSS alone", "joined", "in turn"],
    steps.map(({ name, separateMs, joined, inTurn, peakRss }) => [
      name,
      spread(separateMs, 0),
      spread(joined.ms),
      spread(joined.cpu),
      spread(inTurn.ms),
      megabytes(peakRss.alone),
      megabytes(peakRss.joined),
      megabytes(peakRss.inTurn),
    ]),
  );
  const whole = runs
    ? `whole runs of 10 steps on tiny-llama, ${count}: separately ${spread(runs.separateSeconds)} s, together ` +
      `${spread(runs.togetherSeconds)} s, × ${spread(runs.ratio)}; peak RSS ${megabytes(runs.peakRss.alone)} each, ` +
      `${megabytes(runs.peakRss.together)} together`
    : "";
  const trial = options.only !== undefined || rounds < 3 || runs === undefined;
  const data = { settings: { ...common, adapters: count, rounds }, steps, runs };
  report("together", machine, trial, `${text}\n\n${whole}`, data);
});
