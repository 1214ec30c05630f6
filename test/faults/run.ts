/** @file `npm run faults`: kills, full disks, damaged files, jumping clocks and bad clients, again and again, on the built package. */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { Random } from "../../src/base/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { readBackboneConfig } from "../../src/models/index.ts";
import { cutModel, writeRows } from "../../src/training/testing.ts";
import { killAll, type Outcome, ROOT, type Settings } from "./children.ts";
import { damagedAdapters, databaseGone, noDatabase } from "./database.ts";
import { damagedCheckpoints, damagedModels, fullWhileServing, fullWhileTraining, fullWhileWriting, noDisks, readOnlyWhileServing } from "./disk.ts"; // biome-ignore format: one line
import { killTraining, killWriter, WRITERS } from "./kills.ts";
import { noStrace, powerCuts } from "./power.ts";
import { badClients, fewHandles, killServer } from "./server.ts";
import { clockSetBack, jumpingClock } from "./time.ts";

const [PREPARE, MERGE, GGUF, PEFT] = Object.keys(WRITERS) as [string, string, string, string];

/** By name: what is done, and how much of `--times` it gets. */
const SCENARIOS: Readonly<Record<string, (settings: Settings) => Promise<Outcome>>> = {
  "kill-training": killTraining,
  "kill-preparing": (settings) => killWriter(settings, PREPARE),
  "kill-merging": (settings) => killWriter(settings, MERGE),
  "kill-exporting": (settings) => killWriter(settings, GGUF),
  "kill-converting": (settings) => killWriter(settings, PEFT),
  "kill-serving": killServer,
  "disk-training": fullWhileTraining,
  "disk-preparing": (settings) => fullWhileWriting(settings, PREPARE),
  "disk-merging": (settings) => fullWhileWriting(settings, MERGE),
  "disk-serving": fullWhileServing,
  "disk-read-only": readOnlyWhileServing,
  "damage-checkpoints": damagedCheckpoints,
  "damage-models": damagedModels,
  "damage-adapters": damagedAdapters,
  database: databaseGone,
  handles: fewHandles,
  clock: jumpingClock,
  "clock-back": clockSetBack,
  clients: badClients,
  power: powerCuts,
};

/** Why some cannot be run here. */
const MISSING: Readonly<Record<string, () => string | undefined>> = { power: noStrace, database: noDatabase };

const USAGE = `npm run faults -- [options] [scenario …]      (after npm run build)
  --times N      faults of each scenario (100)
  --minutes N    begins no more faults of a scenario after so long
  --seed N       the same faults again (drawn by the clock)
  --dist DIR     the built package (dist)
  --place DIR    where it happens (/dev/shm where there is one, in which fsync costs nothing; power: always on the disk)
  scenario       ${Object.keys(SCENARIOS).join(", ")} (all)
`;

const options = {
  times: { type: "string", default: "100" },
  minutes: { type: "string", default: "1000" },
  seed: { type: "string", default: String(Date.now() % 1_000_000) },
  dist: { type: "string", default: join(ROOT, "dist") },
  place: { type: "string" },
  help: { type: "boolean" },
} as const;
const { values, positionals } = parseArgs({ args: process.argv.slice(process.argv[1] === "--" ? 2 : 1), options, allowPositionals: true }); // biome-ignore format: one line
const times = Number(values.times);
const chosen = positionals.length > 0 ? positionals : Object.keys(SCENARIOS);
if (values.help || !Number.isSafeInteger(times) || times < 1 || chosen.some((name) => !(name in SCENARIOS))) {
  process.stdout.write(USAGE);
  process.exit(values.help ? 0 : 2);
}

const MEMORY = "/dev/shm";
const DISK = tmpdir();
const top = mkdtempSync(join(values.place ?? (existsSync(MEMORY) ? MEMORY : DISK), "milora-faults-"));
chmodSync(top, 0o711); // PostgreSQL, which is another user, has its files in it
// Starting the command is most of a run, and not what is tried here: it is compiled once.
process.env.NODE_COMPILE_CACHE = join(top, "compiled");
process.env.TMPDIR = top;
const shared = join(top, "shared");
mkdirSync(shared);
const model = cutModel(shared);
const colours = ["red", "green", "blue", "white", "black", "grey"];
const rows = Array.from({ length: 28 }, (_, i) => ({ instruction: `Which colour has ${i}?`, output: colours[i % 6]! }));
writeRows(join(shared, "rows.jsonl"), rows);
const adapter = join(shared, "adapter");
{
  using made = Adapter.create(methodOf("lora"), { r: 4 }, readBackboneConfig(model), 1);
  for (const key of made.tensors.keys()) if (key.includes("lora_B")) made.values(key).fill(0.01);
  await made.save(adapter);
}

const random = new Random(Number(values.seed));
process.stdout.write(`seed ${values.seed}\n\n| fault | times | what was seen | minutes |\n|---|---|---|---|\n`);
let failed = 0;
for (const name of chosen) {
  const directory = name === "power" ? mkdtempSync(join(DISK, "milora-faults-")) : join(top, name);
  mkdirSync(directory, { recursive: true });
  const started = performance.now();
  const minutes = () => (performance.now() - started) / 60_000;
  const settings: Settings = {
    ...{ times, done: 0, dist: resolve(values.dist), directory, model, adapter },
    more: () => settings.done < times && minutes() < Number(values.minutes),
    random: () => random.integer(2 ** 30) / 2 ** 30,
  };
  const skipped = name.startsWith("disk-") ? noDisks(settings) : MISSING[name]?.();
  if (skipped) {
    process.stdout.write(`| ${name} | 0 | not run: ${skipped} | |\n`);
    continue;
  }
  try {
    const { scenario, seen } = await SCENARIOS[name]!(settings);
    const told = Object.entries(seen).sort().map(([what, many]) => `${what}: ${many}`); // biome-ignore format: one line
    process.stdout.write(`| ${scenario} | ${settings.done} | ${told.join("; ")} | ${minutes().toFixed(1)} |\n`);
    rmSync(directory, { recursive: true, force: true });
  } catch (error) {
    failed++;
    killAll();
    process.stdout.write(
      `| ${name} | | FAILED: ${(error as Error).message} (after ${settings.done}, left in ${directory}) | ${minutes().toFixed(1)} |\n`,
    );
  }
}
if (failed === 0) rmSync(top, { recursive: true, force: true });
process.exit(failed === 0 ? 0 : 1);
