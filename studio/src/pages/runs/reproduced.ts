/** @file Tables of reproductions as text: cells for people, files for programs. */
import type { ReproducedFigure, ReproducedTable } from "../../../../src/serving/studio/types.ts";

type Column = ReproducedTable["columns"][number];
export type Row = ReproducedTable["rows"][number];
type Value = Row[string];

export const isFigure = (value: Value): value is ReproducedFigure => typeof value === "object" && value !== null;

/** A number as the tables of the reports have it; an empty text where nothing was measured. */
function digitsOf(value: number | null, { digits = 1 }: Column): string {
  if (value === null) return "–";
  return digits === "plain" ? String(Number(value.toPrecision(4))) : value.toFixed(digits);
}

/** With the spread over seeds by itself. */
export function cellOf(value: Value, column: Column): { readonly text: string; readonly spread?: string } {
  if (value === null || value === undefined) return { text: "–" };
  if (typeof value === "string") return { text: value };
  if (typeof value === "number") return { text: digitsOf(value, column) };
  const text = digitsOf(value.value, column);
  if (value.seeds < 2) return { text };
  return { text, spread: `${digitsOf(value.low, column)}–${digitsOf(value.high, column)}` };
}

export const sortValue = (value: Value): string | number | null => (isFigure(value) ? value.value : (value ?? null));

export const isNumeric = ({ rows }: ReproducedTable, { key }: Column): boolean =>
  rows.some((row) => row[key] !== undefined && row[key] !== null && typeof row[key] !== "string");

/** What the paper has is told from what was measured by the name of its column. */
export const isOfPaper = ({ key }: Column): boolean => /(^|_)paper(_|$)/.test(key);

/** RFC 4180; numbers unrounded, figures as four columns. */
export function csvOf({ columns, rows }: ReproducedTable): string {
  const spread = new Set(columns.filter(({ key }) => rows.some((row) => isFigure(row[key]))).map(({ key }) => key));
  const quoted = (value: unknown): string => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const head = columns.flatMap(({ key }) =>
    spread.has(key) ? ["", "_low", "_high", "_seeds"].map((part) => `${key}${part}`) : [key],
  );
  const lines = rows.map((row) =>
    columns.flatMap(({ key }): unknown[] => {
      const value = row[key];
      if (!spread.has(key)) return [value];
      return isFigure(value) ? [value.value, value.low, value.high, value.seeds] : ["", "", "", ""];
    }),
  );
  return [head, ...lines].map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}
