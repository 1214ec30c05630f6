/** @file On what a benchmark ran, and whether the machine was free for it. */
import { readFileSync } from "node:fs";
import { arch, availableParallelism, cpus, loadavg, platform, release, totalmem } from "node:os";
import { join } from "node:path";
import { busyShare } from "../../src/base/index.ts";
import { benchmarksDirectory } from "./cache.ts";

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly system: string;
  readonly node: string;
  readonly versions: Readonly<Record<string, string>>;
  /** 1, 5, 15 minutes, before the benchmark started. */
  readonly loadAverage: readonly number[];
  /** Share of the processors' time that others used in the second before the start. */
  readonly busy: number;
}

/** Version of an installed package, of the benchmarks' own or of the project's. */
export function versionOf(name: string): string {
  for (const directory of [benchmarksDirectory, join(benchmarksDirectory, "..")]) {
    try {
      const text = readFileSync(join(directory, "node_modules", name, "package.json"), "utf8");
      return (JSON.parse(text) as { version: string }).version;
    } catch {}
  }
  return "absent";
}

export const BUSY_LIMIT = 0.1;

/**
 * Describes the machine.
 * @throws Error when others use more than a tenth of it, unless `allowBusy`
 */
export async function inspectMachine(options: {
  readonly allowBusy: boolean;
  readonly versions?: Readonly<Record<string, string>>;
}): Promise<Machine> {
  const loadAverage = loadavg().map((value) => Math.round(value * 100) / 100);
  const busy = Math.round((await busyShare(1000)) * 1000) / 1000;
  if (busy > BUSY_LIMIT) {
    const seen = `${Math.round(busy * 100)} % of the processors is in use by something else (load ${loadAverage[0]})`;
    if (!options.allowBusy) {
      throw new Error(`${seen}: the numbers would mean nothing. Wait, or give --allow-busy to try the benchmark out`);
    }
    process.stderr.write(`WARNING: ${seen}; these numbers mean nothing\n`);
  }
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryGiB: Math.round((totalmem() / 2 ** 30) * 10) / 10,
    system: `${platform()} ${arch()} ${release()}`,
    node: process.version,
    versions: { "onnxruntime-node": versionOf("onnxruntime-node"), koffi: versionOf("koffi"), ...options.versions },
    loadAverage,
    busy,
  };
}
