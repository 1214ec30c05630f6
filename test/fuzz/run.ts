/** @file `npm run fuzz`: every target of test/fuzz for far longer than in `make test`, with seeds of its own, and a table of what was run. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, relative } from "node:path";
import { parseArgs } from "node:util";
import { quickDisk } from "./disk.ts";

const USAGE = `npm run fuzz -- [options] [file …]
  --runs N       cases of each target (100000)
  --seconds N    at most so long for each target (no limit)
  --only TEXT    targets whose name holds it
  --jobs N       targets at a time, a process each (one a core)
  file           data, files, archives, settings, records, kept, http, keys (all)`;

interface Target {
  readonly name: string;
  readonly file: string;
}

interface Line {
  readonly target: string;
  readonly accepted: number;
  readonly refused: Readonly<Record<string, number>>;
  readonly slowestMs: number;
  readonly seconds: number;
}

const options = {
  runs: { type: "string", default: "100000" },
  seconds: { type: "string", default: "0" },
  only: { type: "string", default: "" },
  jobs: { type: "string", default: String(availableParallelism()) },
  help: { type: "boolean" },
} as const;
const { values, positionals } = parseArgs({ args: process.argv.slice(process.argv[1] === "--" ? 2 : 1), options, allowPositionals: true }); // biome-ignore format: one line
if (values.help || !(Number(values.runs) > 0) || !(Number(values.jobs) > 0)) {
  process.stdout.write(`${USAGE}\n`);
  process.exit(values.help ? 0 : 2);
}

const scratch = mkdtempSync(join(quickDisk(), "fuzz-run-"));
const report = join(scratch, "report.jsonl");
const env = { ...process.env, TMPDIR: scratch, MILORA_FUZZ_RUNS: values.runs, MILORA_FUZZ_SECONDS: values.seconds, MILORA_FUZZ_REPORT: report }; // biome-ignore format: one line
const vitest = ["node_modules/vitest/vitest.mjs"];
const files = positionals.length > 0 ? positionals.map((name) => `test/fuzz/${name}.test.ts`) : ["test/fuzz"];

function targets(): Target[] {
  const { stdout, stderr, status } = spawnSync(process.execPath, [...vitest, "list", "--json", "--project", "milora", ...files], { encoding: "utf8", env }); // biome-ignore format: one line
  if (status !== 0) throw new Error(stderr || stdout);
  const found = JSON.parse(stdout.slice(stdout.indexOf("["))) as Target[];
  const here = found.map(({ name, file }) => ({ name, file: relative(process.cwd(), file) }));
  return here.filter(({ name }) => name.includes(values.only));
}

/** Times are measured there: alone, at the end, and what they were is told. */
const isMeasured = ({ file }: Target): boolean => /\bkeys\.test\.ts$/.test(file);

/** One target in a process of its own, so that none waits for another and none has another's memory. */
function fuzz(target: Target): Promise<boolean> {
  const pattern = `^${target.name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`;
  const args = [...vitest, "run", "--project", "milora", "-t", pattern, target.file];
  return new Promise((resolve) => {
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"], env });
    let said = "";
    const hear = (text: string): void => {
      said += text;
    };
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", hear);
    child.on("close", (code) => {
      process.stdout.write(`${code === 0 ? "ok" : "FAILED"}  ${target.name}\n`);
      if (code !== 0 || isMeasured(target)) process.stdout.write(`${said}\n`);
      resolve(code === 0);
    });
  });
}

const all = targets();
let failed = all.length === 0 ? 1 : 0;
async function fuzzAll(waiting: Target[], jobs: number): Promise<void> {
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) if (!(await fuzz(next))) failed++;
  };
  await Promise.all(Array.from({ length: jobs }, worker));
}
await fuzzAll(all.filter((target) => !isMeasured(target)), Number(values.jobs)); // biome-ignore format: one line
await fuzzAll(all.filter(isMeasured), 1);

const lines = existsSync(report)
  ? readFileSync(report, "utf8").trim().split("\n").map((line) => JSON.parse(line) as Line) // biome-ignore format: one line
  : [];
rmSync(scratch, { recursive: true, force: true });
process.stdout.write("\n| target | cases | accepted | refused | a second | slowest ms |\n|---|---|---|---|---|---|\n");
let sum = 0;
for (const { target, accepted, refused, slowestMs, seconds } of lines.sort((a, b) => (a.target < b.target ? -1 : 1))) {
  const no = Object.values(refused).reduce((a, b) => a + b, 0);
  const cases = accepted + no;
  sum += cases;
  process.stdout.write(`| ${target} | ${[cases, accepted, no, Math.round(cases / seconds)].map((n) => n.toLocaleString("en")).join(" | ")} | ${slowestMs.toFixed(0)} |\n`); // biome-ignore format: one line
}
process.stdout.write(`\n${lines.length} targets, ${sum.toLocaleString("en")} cases, ${failed} failed\n`);
process.exit(failed > 0 ? 1 : 0);
