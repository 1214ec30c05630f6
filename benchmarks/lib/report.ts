/** @file Prints a benchmark's table and writes its JSON. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { benchmarksDirectory } from "./cache.ts";
import { BUSY_LIMIT, type Machine } from "./machine.ts";
import type { Summary } from "./statistics.ts";

/** A Markdown table, its columns aligned. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((_, column) => Math.max(3, ...[head, ...rows].map((row) => (row[column] ?? "").length)));
  const line = (row: readonly string[]) => {
    const cells = widths.map((width, i) => (i === 0 ? (row[i] ?? "").padEnd(width) : (row[i] ?? "").padStart(width)));
    return `| ${cells.join(" | ")} |`;
  };
  const rule = widths.map((width, i) => (i === 0 ? "-".repeat(width + 2) : `${"-".repeat(width + 1)}:`));
  return [line(head), `|${rule.join("|")}|`, ...rows.map(line)].join("\n");
}

/** `median [quartile–quartile]`. */
export function spread({ median, low, high }: Summary, digits = 2): string {
  return `${median.toFixed(digits)} [${low.toFixed(digits)}–${high.toFixed(digits)}]`;
}

export function megabytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

/**
 * Prints the machine and the tables and writes `results/<name>.json`, and the same text beside it as Markdown; what was
 * measured on a busy machine, or is only a trial, goes to `results/local/`, which git ignores.
 */
export function report(name: string, machine: Machine, trial: boolean, text: string, data: object): void {
  const { cpu, cores, memoryGiB, node, versions, loadAverage } = machine;
  const date = new Date().toISOString();
  const named = Object.entries(versions).map(([package_, version]) => `${package_} ${version}`);
  const on = `${cpu}, ${cores} cores, ${memoryGiB} GiB; Node ${node}, ${named.join(", ")}; load before ${loadAverage.join(" ")}`;
  process.stdout.write(`\n${on}\n\n${text}\n\n`);
  const local = trial || machine.busy > BUSY_LIMIT;
  const path = join(benchmarksDirectory, "results", local ? "local" : "", name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.json`, `${JSON.stringify({ benchmark: name, date, machine, ...data }, null, 2)}\n`);
  writeFileSync(`${path}.md`, `# ${name}\n\n${date.slice(0, 10)}, ${on}\n\n${text}\n`);
  process.stdout.write(`written: ${relative(process.cwd(), path)}.json and .md\n`);
}
