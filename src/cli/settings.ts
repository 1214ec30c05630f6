/** @file `--set key=value`: single settings of a config from the command line. */
import { parse } from "yaml";
import { InputError } from "../base/index.ts";

export type Settings = { [key: string]: unknown };

const FORBIDDEN = new Set(["__proto__", "constructor", "prototype"]);

/**
 * `["lr=3e-3", "adapter.r=16", "template=chat"]` → `{ lr: 0.003, adapter: { r: 16 }, template: "chat" }`. A value is
 * JSON where it can be read as such, also a number as people write it (.5), or a list or object of YAML
 * ([q_proj, v_proj]); otherwise text. Throws `InputError` FLAG_INVALID with all ill-formed entries.
 */
export function parseSettings(entries: readonly string[]): Settings {
  const settings: Settings = {};
  const problems: string[] = [];
  for (const entry of entries) {
    const at = entry.indexOf("=");
    const path = entry.slice(0, Math.max(at, 0)).split(".");
    if (path.some((part) => part === "" || FORBIDDEN.has(part))) {
      problems.push(`"${entry}" is not of the form key=value, e.g. lr=1e-3 or adapter.r=16`);
      continue;
    }
    try {
      assign(settings, path, parseValue(entry.slice(at + 1)));
    } catch {
      problems.push(`"${entry}" begins a list or an object that does not end as one`);
    }
  }
  if (problems.length) throw new InputError("FLAG_INVALID", "--set", problems);
  return settings;
}

function parseValue(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    if (/^\s*[[{]/.test(text)) return parse(text, { logLevel: "error" });
    return /^\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*$/i.test(text) ? Number(text) : text;
  }
}

function assign(target: Settings, path: readonly string[], value: unknown): void {
  const [head, ...rest] = path as [string, ...string[]];
  if (rest.length === 0) target[head] = value;
  else {
    if (!isSettings(target[head])) target[head] = {};
    assign(target[head] as Settings, rest, value);
  }
}

/** `over` on top of `base`; objects are merged, everything else is replaced. */
export function merge(base: Settings, over: Settings): Settings {
  const result: Settings = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const below = result[key];
    result[key] = isSettings(below) && isSettings(value) ? merge(below, value) : value;
  }
  return result;
}

/**
 * Without the fields that are null: in a config null means "as if it were not there". The method's own settings keep
 * theirs, where null may be a value.
 */
export function withoutNulls(settings: Settings): Settings {
  return Object.fromEntries(
    Object.entries(settings)
      .filter(([, value]) => value !== null)
      .map(([key, value]) => [key, key !== "adapter" && isSettings(value) ? withoutNulls(value) : value]),
  );
}

function isSettings(value: unknown): value is Settings {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
