/** @file Where words go: results to stdout, all else to stderr, colours only where the reader can see and wants them. */
import { styleText } from "node:util";

export type Style = Parameters<typeof styleText>[0];

/** Whether `stream` shows colours. `NO_COLOR` (any value) forbids, `FORCE_COLOR` allows where no terminal is seen. */
export function hasColours(stream: NodeJS.WriteStream = process.stdout): boolean {
  const { NO_COLOR, FORCE_COLOR, TERM } = process.env;
  if (NO_COLOR) return false;
  if (FORCE_COLOR) return FORCE_COLOR !== "0" && FORCE_COLOR !== "false";
  return Boolean(stream.isTTY) && TERM !== "dumb";
}

export function paint(style: Style, text: string, stream: NodeJS.WriteStream = process.stdout): string {
  return hasColours(stream) ? styleText(style, text, { validateStream: false }) : text;
}

/** A result, on stdout. */
export function print(text = ""): void {
  process.stdout.write(`${text}\n`);
}

/** The machine-readable result of a command: one line of JSON, the only thing on stdout. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** A note to the person at the keyboard, on stderr. */
export function note(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** A note of what may be wrong. */
export function warn(text: string): void {
  note(`${paint("yellow", "warning:", process.stderr)} ${text}`);
}

/** Text on one line, whatever it holds: control characters would let a file name or a config rewrite the screen. */
export function oneLine(text: string): string {
  return text
    .replace(/\s*\n+\s*/g, " ")
    .replace(/\p{Cc}/gu, "")
    .trim();
}

/**
 * Columns padded to their widest cell, two spaces apart; columns of numbers are set to the right.
 * Widths are counted before any painting: cells hold plain text, `style` is applied to whole rows.
 */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? "").length)));
  const numeric = header.map((_, i) => rows.length > 0 && rows.every((row) => /^[-–\d.,%±×x ]*$/.test(row[i] ?? "")));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (numeric[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
      .join("  ")
      .trimEnd();
  return [paint("bold", line(header)), ...rows.map(line)].join("\n");
}

/** 79953920 → `79,953,920`. */
export function grouped(n: number): string {
  return n.toLocaleString("en-US");
}

/** 0.6433 → `64.3 %`. */
export function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** Seconds as `8.2 s`, `3 min 12 s` or `2 h 4 min`. */
export function duration(seconds: number): string {
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds); // first: no minute has 60 seconds
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
