/** @file What a soak has come to: errors, memory and descriptors over time, shares of the tenants. */
import { megabytes, table } from "./report.ts";
import type { FairnessReport } from "./soak-fairness.ts";
import { type Minute, mebi, sum } from "./soak-minutes.ts";
import type { Soak } from "./soak-tally.ts";
import { lineThrough } from "./statistics.ts";

/** What goes up and down tells nothing in less time. */
const LEAST_MINUTES = 30;
/** What may grow over the time that is looked at: of its median, and at least so much. */
const FLAT = { share: 0.05, bytes: 16 * 2 ** 20, descriptors: 8 };
/** Jain's index in every window. */
const FAIR = 0.95;

export interface Sample {
  readonly hours: number;
  readonly rss: number;
  readonly descriptors: number;
}

export interface Seen {
  readonly soak: Soak;
  readonly rows: readonly Minute[];
  /** After the warm-up. */
  readonly samples: readonly Sample[];
  /** Where tenants were measured that always wait. */
  readonly fairness: FairnessReport | undefined;
}

interface Growth {
  readonly median: number;
  readonly slope: number;
  readonly error: number;
  readonly growth: number;
  readonly allowed: number;
}

export function verdict({ soak, rows, samples, fairness }: Seen): { passed: boolean; text: string; data: object } {
  const hours = (samples.at(-1)?.hours ?? 0) - (samples[0]?.hours ?? 0);
  const over = (of: "rss" | "descriptors", least: number): Growth => {
    const { median, slope, error } = lineThrough(samples.map((sample) => [sample.hours, sample[of]] as const));
    return { median, slope, error, growth: slope * hours, allowed: Math.max(FLAT.share * median, least) };
  };
  const memory = over("rss", FLAT.bytes);
  const handles = over("descriptors", FLAT.descriptors);
  const judged = hours * 60 >= LEAST_MINUTES;
  const faults = sum(soak.faults);
  const flat = memory.growth <= memory.allowed;
  const handlesFlat = !(handles.growth > handles.allowed);
  const fair = !fairness || (fairness.equal.least >= FAIR && fairness.weighted.least >= FAIR);
  const passed = faults === 0 && fair && (!judged || (flat && handlesFlat));
  const minutes = (60 * hours).toFixed(0);
  const told = judged
    ? [
        `memory ${flat ? "flat" : "NOT FLAT"} (at most ${mebi(memory.allowed)} MiB allowed)`,
        `descriptors ${handlesFlat ? "flat" : "NOT FLAT"} (at most ${handles.allowed.toFixed(0)} allowed)`,
      ]
    : [`memory not judged (that takes ${LEAST_MINUTES} minutes after warm-up)`];
  const text = [
    table(["errors", "", "count"], [
      ...[...soak.provoked].map(([kind, count]) => [kind, "provoked", String(count)]),
      ...[...soak.faults].map(([kind, count]) => [kind, "NOT PROVOKED", String(count)]),
    ]), // biome-ignore format: one line
    "",
    `${soak.requests} requests, ${soak.tokens} tokens, ${soak.cuts} times hung up, ${sum(soak.provoked)} errors provoked`,
    ...(fairness ? streamLines(soak, fairness) : []),
    `RSS after warm-up: ${megabytes(memory.median)}, ${mebi(memory.slope)} ± ${mebi(2 * memory.error)} MiB an hour, ` +
      `${mebi(memory.growth)} MiB in ${minutes} minutes`,
    `descriptors: ${handles.median}, ${handles.slope.toFixed(1)} ± ${(2 * handles.error).toFixed(1)} an hour`,
    `VERDICT: ${[
      passed ? "passed" : "FAILED",
      ...told,
      ...(fairness ? [fair ? "fair" : `NOT FAIR (at least ${FAIR} in every window)`] : []),
      `${faults === 0 ? "none" : faults} of the errors not provoked`,
    ].join("; ")}`,
  ].join("\n");
  const data = {
    ...{ passed, flat: judged ? flat : null, descriptorsFlat: judged ? handlesFlat : null },
    ...{ slopeBytesPerHour: memory.slope, growthBytes: memory.growth, allowedBytes: memory.allowed },
    ...{ descriptorsPerHour: handles.slope, medianDescriptors: handles.median },
    ...(fairness && { admitted: soak.admitted, revoked: soak.revoked, latestMs: soak.latestMs, guests: soak.guests }),
    provoked: Object.fromEntries(soak.provoked),
    notProvoked: Object.fromEntries(soak.faults),
    minutes: rows,
    ...(fairness && { fairness }),
  };
  return { passed, text, data };
}

function streamLines(soak: Soak, { windows, leftOut, equal, weighted }: FairnessReport): string[] {
  const index = ({ median, least }: FairnessReport["equal"]): string =>
    `${median.toFixed(4)}, at least ${least.toFixed(4)}`;
  const late =
    soak.latestMs === 0 ? "none was let in after that" : `let in until ${soak.latestMs.toFixed(0)} ms after that`;
  return [
    `${soak.admitted} streams let in and answered; ${soak.guests} tenants came and went, ${soak.revoked} keys were revoked while in use, ${late}`,
    `Jain's index of what tenants were served, ${windows.length} windows, ${leftOut} left out: equal weights ${index(equal)}; by weights 1, 2 and 4 ${index(weighted)}`,
  ];
}
