/** @file Reports as text: tables in Markdown and CSV. */
import type { Difference } from "./differences.ts";
import type { Report, ReportedStudy } from "./results.ts";
import type { Column, Figure, Table, Value } from "./study.ts";

const isFigure = (value: Value): value is Figure => typeof value === "object" && value !== null;

function numberText(value: number, digits: Column["digits"] = 1): string {
  if (!Number.isFinite(value)) return "–";
  return digits === "plain" ? String(Number(value.toPrecision(4))) : value.toFixed(digits);
}

/** A cell for people: nothing measured is a dash. */
export function valueText(value: Value, { digits }: Column): string {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (typeof value === "number") return numberText(value, digits);
  const [middle, low, high] = [value.value, value.low, value.high].map((number) => numberText(number, digits));
  return value.seeds > 1 ? `${middle} (${low}–${high})` : middle!;
}

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ");

/** Of a table without rows there is what its notes say. */
export function markdownTable(table: Table): string {
  const { columns, rows } = table;
  if (table.rows.length === 0) return (table.notes ?? []).join("\n\n");
  const line = (cells: readonly string[]) => `| ${cells.map(cell).join(" | ")} |`;
  const numeric = ({ key }: Column) => rows.some((row) => row[key] !== undefined && typeof row[key] !== "string");
  return [
    line(columns.map(({ title }) => title)),
    `|${columns.map((column) => (numeric(column) ? "---:" : "---")).join("|")}|`,
    ...rows.map((row) => line(columns.map((column) => valueText(row[column.key], column)))),
  ].join("\n");
}

/** RFC 4180; numbers unrounded, figures as four columns. */
export function csvTable({ columns, rows }: Table): string {
  const spread = new Set(columns.filter(({ key }) => rows.some((row) => isFigure(row[key]))).map(({ key }) => key));
  const quoted = (value: unknown) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const parts = ["", "_low", "_high", "_seeds"];
  const head = columns.flatMap(({ key }) => (spread.has(key) ? parts.map((part) => `${key}${part}`) : [key]));
  const lines = rows.map((row) =>
    columns.flatMap(({ key }): unknown[] => {
      const value = row[key];
      if (!spread.has(key)) return [value];
      return isFigure(value) ? [value.value, value.low, value.high, value.seeds] : ["", "", "", ""];
    }),
  );
  return [head, ...lines].map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

export function differencesTable(differences: readonly Difference[], methods: number): Table {
  return {
    name: "differences",
    title: "Settings that are not the paper's",
    columns: [
      { key: "setting", title: "setting" },
      { key: "paper", title: "paper" },
      { key: "here", title: "here" },
      { key: "methods", title: "of" },
    ],
    rows: differences.map(({ setting, paper, here, methods: of }) => ({
      setting,
      paper,
      here,
      methods: of.length === methods && of.length > 1 ? "all methods" : of.join(", "),
    })),
  };
}

export const doneText = ({ done, cells }: ReportedStudy): string => `${done} of ${cells} cells measured`;

/** The whole report; charts are named, as `<name>.svg` beside it. */
export function markdownReport(report: Report): string {
  const { preset, model, seeds, machine, made, studies, differences, failures, methods } = report;
  const parts = [
    "# The paper's tables and figures, measured",
    `Zhang et al. 2024, *MiLoRA*, arXiv 2410.18035. Preset \`${preset}\`, backbone \`${model}\`, seeds: ${seeds}. ${machine}. ${made}.`,
  ];
  for (const study of studies) {
    parts.push(`## ${study.title}`, `${study.about} (${doneText(study)}.)`);
    for (const table of study.tables) {
      const below = table.rows.length ? (table.notes ?? []) : [];
      parts.push(`**${table.title}**`, markdownTable(table), ...below);
    }
    for (const chart of study.charts) parts.push(`![${chart.title}](${chart.name}.svg)`);
    if (study.skipped.length) parts.push("Left out:", study.skipped.map((line) => `- ${line}`).join("\n"));
  }
  const table = differencesTable(differences, methods);
  parts.push(`## ${table.title}`, differences.length ? markdownTable(table) : "None.");
  if (failures.length) {
    parts.push("## Failed", failures.map(({ label, code, reason }) => `- ${label}: ${reason} (${code})`).join("\n"));
  }
  return `${parts.join("\n\n")}\n`;
}
