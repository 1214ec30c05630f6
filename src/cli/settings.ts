/** @file `--set key=value`: single settings of a config from the command line. */
import { parse } from "yaml";
import { InputError } from "../base/index.ts";
import { assign, merge, type Settings, settingPath, withoutNulls } from "../training/index.ts";

export { merge, type Settings, withoutNulls };

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
    const path = settingPath(entry.slice(0, Math.max(at, 0)));
    if (path === undefined) {
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
