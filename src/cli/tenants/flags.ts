/** @file Values that the commands about tenants, keys and usage share: limits, times, and how these are shown. */
import { type Command, InvalidArgumentError, Option } from "commander";
import type { LimitName, Tenant, TenantLimits } from "../../serving/index.ts";
import type { AdminFlags } from "../admin.ts";
import { grouped } from "../terminal.ts";
import type { Administration } from "./administration.ts";

const NONE = "none";

/** The server's parts are loaded for who uses them, not for `--help`. @param make a store where there is none */
export async function openAdministration(flags: AdminFlags, { make = false } = {}): Promise<Administration> {
  return (await import("./administration.ts")).openAdministration(flags, make);
}

const LIMITS: readonly {
  readonly name: LimitName;
  readonly flag: string;
  readonly means: string;
  readonly short: string;
}[] = [
  { name: "requestsPerMinute", flag: "--requests-per-minute", means: "requests in a minute", short: "requests/min" },
  { name: "tokensPerMinute", flag: "--tokens-per-minute", means: "tokens in a minute", short: "tokens/min" },
  { name: "tokensPerDay", flag: "--tokens-per-day", means: "tokens in a day (UTC)", short: "tokens/day" },
  { name: "maxConcurrent", flag: "--max-concurrent", means: "requests at a time", short: "at a time" },
  { name: "maxAdapters", flag: "--max-adapters", means: "adapters of its own", short: "adapters" },
  { name: "maxStoredBytes", flag: "--max-stored-bytes", means: "bytes of its own adapters", short: "bytes" },
];

/** As commander keeps them, which takes null for no value at all. */
export type LimitFlags = { readonly [K in LimitName]?: number | typeof NONE };
export type LimitChanges = { [K in LimitName]?: number | null };

/** One flag for each limit. @param removable whether `none` takes a limit away */
export function limitFlags(command: Command, removable: boolean): Command {
  for (const { flag, means } of LIMITS) {
    const option = new Option(`${flag} <n>`, `${means}${removable ? "; none: no limit" : ""}`);
    command.addOption(option.argParser((text) => limit(text, removable)));
  }
  return command;
}

function limit(text: string, removable: boolean): number | typeof NONE {
  if (removable && text === NONE) return NONE;
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < 1) {
    throw new InvalidArgumentError(`It must be a whole number of at least 1${removable ? ", or none" : ""}.`);
  }
  return value;
}

/** Those limits that were given; null: it is to go. */
export function limitsOf(flags: LimitFlags): LimitChanges | undefined {
  const changes: LimitChanges = {};
  for (const { name } of LIMITS) {
    const value = flags[name];
    if (value !== undefined) changes[name] = value === NONE ? null : value;
  }
  return Object.keys(changes).length > 0 ? changes : undefined;
}

export function limitsText(limits: TenantLimits): string {
  const set = LIMITS.flatMap(({ name, short }) =>
    limits[name] === undefined ? [] : [`${grouped(limits[name])} ${short}`],
  );
  return set.join(", ") || "none";
}

export function tenantText({ id, name, weight, limits, disabled }: Tenant): string {
  const named = name === id ? id : `${id} (${name})`;
  return `${named}: weight ${weight}, limits: ${limitsText(limits)}${disabled ? ", disabled" : ""}`;
}

/** `2026-03-01`, `2026-03-01T12:00Z`: a time in UTC unless it says otherwise. */
export function time(text: string): Date {
  const match = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?$/.exec(text);
  const value = match ? new Date(match[1] !== undefined && match[4] === undefined ? `${text}Z` : text) : undefined;
  if (!value || Number.isNaN(value.getTime())) {
    throw new InvalidArgumentError("It must be a day or a time, e.g. 2026-03-01 or 2026-03-01T12:00Z.");
  }
  return value;
}

const UNITS: Readonly<Record<string, number>> = { m: 60, h: 3600, d: 86_400 };

/** `90d`, `12h`, `30m` from now on, or a time. */
export function expiry(text: string): Date {
  const match = /^(\d{1,6})([mhd])$/.exec(text);
  if (!match) return time(text);
  const value = new Date(Date.now() + Number(match[1]) * UNITS[match[2]!]! * 1000);
  if (Number.isNaN(value.getTime())) throw new InvalidArgumentError("It is too far away.");
  return value;
}

/** To the minute, in UTC. */
export function timeText(time: Date | null): string {
  return time === null ? "–" : time.toISOString().slice(0, 16).replace("T", " ");
}
