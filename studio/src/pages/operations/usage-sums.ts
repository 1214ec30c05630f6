/** @file Sums of usage as a chart and a file show them. */
import type { UsageRow } from "../../../../src/serving/store/types.ts";

export type Step = "hour" | "day";
export type Measure = "tokens" | "requests";
type By = "tenant" | "adapter";

/** Colours of the theme: the largest groups have one each, the rest share the grey one. */
const OWN = [1, 2, 3, 4, 5, 6, 8] as const;
const SHARED = 7;
export const OTHERS = "others";
const MS: Record<Step, number> = { hour: 3_600_000, day: 86_400_000 };

export interface Group {
  readonly name: string;
  readonly requests: number;
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly tokens: number;
  /** 1 to 8. */
  readonly series: number;
  /** One of those that share a colour. */
  readonly other: boolean;
}

/** A piece of a column. */
export interface Bar {
  readonly start: Date;
  readonly end: Date;
  readonly name: string;
  readonly series: number;
  readonly value: number;
  readonly below: number;
  readonly above: number;
}

const nameOf = (row: UsageRow, by: By, backbone: string): string => row[by] || backbone;

/** Sums by tenant or adapter, the largest first. */
export function groupsOf(rows: readonly UsageRow[], by: By, measure: Measure, backbone: string): Group[] {
  const sums = new Map<string, { requests: number; promptTokens: number; completionTokens: number }>();
  for (const row of rows) {
    const name = nameOf(row, by, backbone);
    const sum = sums.get(name) ?? { requests: 0, promptTokens: 0, completionTokens: 0 };
    sum.requests += row.requests;
    sum.promptTokens += row.promptTokens;
    sum.completionTokens += row.completionTokens;
    sums.set(name, sum);
  }
  return [...sums]
    .map(([name, sum]) => ({ name, ...sum, tokens: sum.promptTokens + sum.completionTokens }))
    .sort((a, b) => b[measure] - a[measure] || (a.name < b.name ? -1 : 1))
    .map((group, i) => ({ ...group, series: OWN[i] ?? SHARED, other: i >= OWN.length }));
}

/** Columns of hours or days, their pieces one on the other. */
export function barsOf(
  rows: readonly UsageRow[],
  groups: readonly Group[],
  by: By,
  step: Step,
  measure: Measure,
  backbone: string,
): Bar[] {
  const values = new Map<string, Map<string, number>>();
  for (const row of rows) {
    const at = values.get(row[step]!) ?? new Map<string, number>();
    const name = nameOf(row, by, backbone);
    const value = measure === "requests" ? row.requests : row.promptTokens + row.completionTokens;
    values.set(row[step]!, at.set(name, (at.get(name) ?? 0) + value));
  }
  return [...values].flatMap(([time, at]) => {
    const start = new Date(time);
    const end = new Date(start.getTime() + MS[step]);
    const pieces = new Map<string, { series: number; value: number }>();
    for (const { name, series, other } of groups) {
      const called = other ? OTHERS : name;
      const value = (pieces.get(called)?.value ?? 0) + (at.get(name) ?? 0);
      if (value > 0) pieces.set(called, { series, value });
    }
    let above = 0;
    return [...pieces].map(([name, { series, value }]) => {
      const below = above;
      above += value;
      return { start, end, name, series, value, below, above };
    });
  });
}

/** The starts of all steps from one time on, and the end of the last. */
export function timesOf(from: Date, step: Step, now = Date.now()): Date[] {
  const times: Date[] = [];
  for (let at = from.getTime(); ; at += MS[step]) {
    times.push(new Date(at));
    if (at > now) return times;
  }
}

/** RFC 4180. */
export function csvOf(rows: readonly UsageRow[], by: By, step: Step): string {
  const quoted = (text: string): string => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = rows.map((row) =>
    [row[step] ?? "", row[by] ?? "", row.requests, row.promptTokens, row.completionTokens].map(String).map(quoted),
  );
  const head = [step, by, "requests", "prompt_tokens", "completion_tokens"];
  return [head, ...lines].map((line) => `${line.join(",")}\r\n`).join("");
}
