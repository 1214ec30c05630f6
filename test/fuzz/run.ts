/** @file `npm run fuzz`: every target of test/fuzz for far longer than in `make test`, with seeds of its own, and a table of what was run. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const USAGE = `npm run fuzz -- [options] [file …]
  --runs N       cases of each target (100000)
  --seconds N    at most so long for each target (no limit)
  --only TEXT    targets whose name holds it
  file           data, files, archives, settings, http, keys (all)`;

interface Line {
  readonly target: string;
  readonly accepted: number;
  readonly refused: Readonly<Record<string, number>>;
  readonly slowestMs: number;
}

const options = {
  runs: { type: "string", default: "100000" },
  seconds: { type: "string", default: "0" },
  only: { type: "string" },
  help: { type: "boolean" },
} as const;
const { values, positionals } = parseArgs({ args: process.argv.slice(process.argv[1] === "--" ? 2 : 1), options, allowPositionals: true }); // biome-ignore format: one line
if (values.help || !(Number(values.runs) > 0)) {
  process.stdout.write(`${USAGE}\n`);
  process.exit(values.help ? 0 : 2);
}

const scratch = mkdtempSync(join(tmpdir(), "fuzz-report-"));
const report = join(scratch, "report.jsonl");
const files = positionals.length > 0 ? positionals.map((name) => `test/fuzz/${name}.test.ts`) : ["test/fuzz"];
const only = values.only === undefined ? [] : ["-t", values.only];
const env = { ...process.env, MILORA_FUZZ_RUNS: values.runs, MILORA_FUZZ_SECONDS: values.seconds, MILORA_FUZZ_REPORT: report }; // biome-ignore format: one line
const command = ["node_modules/vitest/vitest.mjs", "run", "--project", "milora", ...only, ...files];
const { status } = spawnSync(process.execPath, command, { stdio: ["ignore", "inherit", "inherit"], env });

const lines = existsSync(report)
  ? readFileSync(report, "utf8").trim().split("\n").map((line) => JSON.parse(line) as Line) // biome-ignore format: one line
  : [];
rmSync(scratch, { recursive: true, force: true });
process.stdout.write("\n| target | cases | accepted | refused | slowest ms |\n|---|---|---|---|---|\n");
let all = 0;
for (const { target, accepted, refused, slowestMs } of lines.sort((a, b) => (a.target < b.target ? -1 : 1))) {
  const no = Object.values(refused).reduce((a, b) => a + b, 0);
  all += accepted + no;
  process.stdout.write(`| ${target} | ${accepted + no} | ${accepted} | ${no} | ${slowestMs.toFixed(0)} |\n`);
}
process.stdout.write(`\n${lines.length} targets, ${all} cases\n`);
process.exit(status ?? 1);
