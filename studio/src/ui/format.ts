/** @file Numbers, sizes and times as people read them. */

const NONE = "–";

/** Three significant digits, or as many as asked for; whole numbers up to a million in full. */
export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e6)
    return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: digits }).format(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(digits - 1);
  return value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(size + 1))) });
}

export function percent(share: number | null | undefined, digits = 0): string {
  return share === null || share === undefined || Number.isNaN(share) ? NONE : `${(100 * share).toFixed(digits)} %`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  const power = value < 1024 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(value) / 10));
  const scaled = value / 1024 ** power;
  return `${power === 0 ? scaled : scaled.toFixed(scaled < 10 ? 1 : 0)} ${UNITS[power]}`;
}

/** `1.2 s`, `3 min 5 s`, `2 h 4 min`. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  const whole = Math.round(seconds); // first: no minute has 60 seconds
  if (whole < 60) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function milliseconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  return value < 1000 ? `${number(value, 3)} ms` : duration(value / 1000);
}

/** A time in the reader's zone. */
export function time(when: string | number | Date | null | undefined): string {
  if (when === null || when === undefined) return NONE;
  return new Date(when).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

/** `just now`, `5 minutes ago`, and the date of what is older than a week. */
export function ago(when: string | number | Date | null | undefined): string {
  if (when === null || when === undefined) return NONE;
  const seconds = (Date.now() - new Date(when).getTime()) / 1000;
  const text = (value: number, unit: string) => `${value} ${unit}${value === 1 ? "" : "s"} ago`;
  if (seconds < 10) return "just now";
  if (seconds < 60) return text(Math.floor(seconds), "second");
  if (seconds < 3600) return text(Math.floor(seconds / 60), "minute");
  if (seconds < 86_400) return text(Math.floor(seconds / 3600), "hour");
  return seconds < 7 * 86_400 ? text(Math.floor(seconds / 86_400), "day") : time(when);
}

/** `q_proj` → `q`: what fits above a column. */
export function expertName(name: string): string {
  return name.replace(/_proj$/, "");
}
