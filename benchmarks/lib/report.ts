/** @file Prints a benchmark's table and writes its JSON. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { benchmarksDirectory } from "./cache.ts";
import { BUSY_LIMIT, type Machine } from "./machine.ts";
import type { Summary } from "./statistics.ts";

/** Columns aligned, the first to the left. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows];
  const widths = head.map((_, column) => Math.max(...all.map((row) => (row[column] ?? "").length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join("  ");
  return [line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n");
}

/** `median [quartile–quartile]`. */
export function spread({ median, low, high }: Summary, digits = 2): string {
  return `${median.toFixed(digits)} [${low.toFixed(digits)}–${high.toFixed(digits)}]`;
}

export function megabytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

/**
 * Prints the machine and the table and writes `results/<name>.json`; what was measured on a busy machine, or is only a
 * trial, goes to `results/local/`, which git ignores.
 */
export function report(name: string, machine: Machine, trial: boolean, text: string, data: object): void {
  const { cpu, cores, memoryGiB, node, versions, loadAverage } = machine;
  const named = Object.entries(versions).map(([package_, version]) => `${package_} ${version}`);
  process.stdout.write(`\n${cpu}, ${cores} cores, ${memoryGiB} GiB; Node ${node}, ${named.join(", ")}; `);
  process.stdout.write(`load before ${loadAverage.join(" ")}\n\n${text}\n\n`);
  const local = trial || machine.busy > BUSY_LIMIT;
  const path = join(benchmarksDirectory, "results", local ? "local" : "", `${name}.json`);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(
    path,
    `${JSON.stringify({ benchmark: name, date: new Date().toISOString(), machine, ...data }, null, 2)}\n`,
  );
  process.stdout.write(`written: ${relative(process.cwd(), path)}\n`);
}
