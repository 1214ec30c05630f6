/** @file What is looked at stands in the address, so that a link shows the same: filters, runs, ranges of steps, switches. */
import { useSearchParams } from "wouter";
import type { Range } from "./api.ts";

export type Changes = Readonly<Record<string, string | number | readonly string[] | undefined>>;

export interface Address {
  readonly get: (name: string) => string | undefined;
  readonly all: (name: string) => string[];
  /** Undefined, empty and no values take a name away. What is typed replaces the entry in the history. */
  readonly set: (changes: Changes) => void;
  /** A path with what stands in the address now, and some changes. */
  readonly link: (path: string, changes: Changes) => string;
}

export function useAddress(): Address {
  const [params, setParams] = useSearchParams();
  return {
    get: (name) => params.get(name) ?? undefined,
    all: (name) => params.getAll(name),
    set: (changes) => setParams((now) => changed(now, changes), { replace: true }),
    link: (path, changes) => `${path}?${changed(params, changes)}`,
  };
}

function changed(now: URLSearchParams, changes: Changes): URLSearchParams {
  const next = new URLSearchParams(now);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    const values = value === undefined || value === "" ? [] : typeof value === "object" ? value : [String(value)];
    for (const one of values) next.append(name, one);
  }
  return next;
}

/** A path with values of the address. */
export function link(path: string, values: Changes): string {
  return `${path}?${changed(new URLSearchParams(), values)}`;
}

export const runLink = (id: string): string => link("/runs/run", { id });
export const compareLink = (ids: readonly string[]): string => link("/runs/compare", { id: ids });

function stepOf(text: string | undefined): number | undefined {
  const step = Number(text ?? Number.NaN);
  return Number.isSafeInteger(step) && step >= 0 ? step : undefined;
}

/** The steps that are looked at; all of them where nothing, or nothing sensible, is said. */
export function rangeOf({ get }: Address): Range {
  const [from, to] = [stepOf(get("from")), stepOf(get("to"))];
  return from !== undefined && to !== undefined && from > to ? {} : { from, to };
}

export interface View {
  readonly log: boolean;
  /** Weight of what came before in the smoothed line, 0 to 1. */
  readonly smooth: number;
}

export const SMOOTHINGS = ["0", "0.6", "0.9", "0.97"] as const;

export function viewOf({ get }: Address): View {
  const smooth = get("smooth") ?? "0";
  return { log: get("log") === "1", smooth: (SMOOTHINGS as readonly string[]).includes(smooth) ? Number(smooth) : 0 };
}
