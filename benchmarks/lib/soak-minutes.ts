/** @file What a soak tells of each minute. */
import { readdirSync } from "node:fs";
import { metricsOf, type ServerProcess } from "./server-process.ts";
import type { Soak } from "./soak-tally.ts";

export interface Minute {
  readonly minute: number;
  readonly requests: number;
  readonly tokens: number;
  readonly cuts: number;
  readonly provoked: number;
  readonly notProvoked: number;
  readonly rss: number;
  readonly heap: number;
  readonly descriptors: number;
  readonly sessions: number;
  readonly kvBytes: number;
  readonly prefixBytes: number;
  readonly resident: number;
  readonly installed: number;
}

export const sum = (map: ReadonlyMap<string, number>): number => [...map.values()].reduce((a, b) => a + b, 0);
/** What happened until the end of each minute, to be told as what happened in it. */
const totals = new WeakMap<Minute, Pick<Minute, "requests" | "tokens" | "cuts" | "provoked" | "notProvoked">>();

export async function minuteOf(
  soak: Soak,
  server: ServerProcess,
  minute: number,
  last: Minute | undefined,
  /** The data directory. */
  data: string,
): Promise<Minute> {
  const metrics = await metricsOf(soak.url, soak.adminKey);
  const of = (name: string) => metrics.get(`milora_${name}`) ?? Number.NaN;
  const now = {
    ...{ requests: soak.requests, tokens: soak.tokens, cuts: soak.cuts },
    ...{ provoked: sum(soak.provoked), notProvoked: sum(soak.faults) },
  };
  const then = last && totals.get(last);
  const row: Minute = {
    minute,
    requests: now.requests - (then?.requests ?? 0),
    tokens: now.tokens - (then?.tokens ?? 0),
    cuts: now.cuts - (then?.cuts ?? 0),
    provoked: now.provoked - (then?.provoked ?? 0),
    notProvoked: now.notProvoked - (then?.notProvoked ?? 0),
    rss: server.memory().rss,
    heap: of("nodejs_heap_size_used_bytes"),
    descriptors: server.descriptors(),
    sessions: of("sessions"),
    kvBytes: of("kv_bytes"),
    prefixBytes: of("prefix_cache_bytes"),
    resident: of("adapters_resident"),
    installed: readdirSync(`${data}/adapters`).filter((name) => !name.startsWith(".")).length,
  };
  totals.set(row, now);
  return row;
}

const COLUMNS: readonly (readonly [head: string, cell: (row: Minute) => string])[] = [
  ["minute", ({ minute }) => String(minute)],
  ["requests", ({ requests }) => String(requests)],
  ["tokens", ({ tokens }) => String(tokens)],
  ["hung up", ({ cuts }) => String(cuts)],
  ["provoked", ({ provoked }) => String(provoked)],
  ["NOT PROVOKED", ({ notProvoked }) => String(notProvoked)],
  ["RSS, MiB", ({ rss }) => mebi(rss)],
  ["heap", ({ heap }) => mebi(heap)],
  ["KV", ({ kvBytes }) => mebi(kvBytes)],
  ["prefixes", ({ prefixBytes }) => mebi(prefixBytes)],
  ["descriptors", ({ descriptors }) => String(descriptors)],
  ["sessions", ({ sessions }) => (Number.isNaN(sessions) ? "-" : String(sessions))],
  ["adapters", ({ resident }) => String(resident)],
  ["on disk", ({ installed }) => String(installed)],
];

export const mebi = (bytes: number): string => (Number.isNaN(bytes) ? "-" : (bytes / 2 ** 20).toFixed(1));
export const MINUTE_HEAD = COLUMNS.map(([head]) => head).join("  ");
export const lineOf = (row: Minute): string =>
  COLUMNS.map(([head, cell]) => cell(row).padStart(head.length)).join("  ");
