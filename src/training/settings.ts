/** @file Settings before they are checked: dotted paths, one set over another, null for "as if it were not there". */

export type Settings = { [key: string]: unknown };

/** Keys that would change an object's prototype instead of its fields. */
const FORBIDDEN = new Set(["__proto__", "constructor", "prototype"]);

/** The parts of `adapter.r`; undefined where it is no path. */
export function settingPath(text: string): readonly string[] | undefined {
  const path = text.split(".");
  return path.some((part) => part === "" || FORBIDDEN.has(part)) ? undefined : path;
}

/** @param path as of `settingPath` */
export function assign(target: Settings, path: readonly string[], value: unknown): void {
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

export function isSettings(value: unknown): value is Settings {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
