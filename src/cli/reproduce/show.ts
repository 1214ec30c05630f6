/** @file What the terminal shows of a plan and of its results. */
import {
  type Cost,
  openCells,
  openRuns,
  type Plan,
  problemsOf,
  type Report,
  valueText,
} from "../../evaluation/index.ts";
import { shorten } from "../../training/index.ts";
import { duration, grouped, paint, table } from "../terminal.ts";

/** Data sets of one hub, for one, are all missing at once. */
const MOST_PROBLEMS = 12;

/** Hours where minutes say too little. */
function timeText(seconds: number | undefined): string {
  if (seconds === undefined) return "unknown";
  return seconds < 5400 ? duration(seconds) : `${(seconds / 3600).toFixed(1)} hours`;
}

function bytesText(bytes: number): string {
  return bytes < 1e9 ? `${Math.max(1, Math.round(bytes / 1e6))} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** A line for each table and figure, then what all of them cost together. */
export function planText(plan: Plan, cost: Cost): string {
  const open = new Set(openCells(plan));
  const rows = plan.studies.map(({ name, title }) => {
    const cells = plan.needs.get(name)!;
    const runs = new Set(cells.flatMap(({ run }) => run ?? []));
    const count = (predicate: (cell: (typeof cells)[number]) => boolean) => String(cells.filter(predicate).length);
    return [
      name,
      title.replace(/^[^:]*: /, ""),
      String(runs.size),
      String(cells.length),
      count(({ state }) => state === "done"),
      count((cell) => open.has(cell)),
    ];
  });
  const lines = [
    table(["", "", "trainings", "cells", "done", "to do"], rows),
    "",
    `together, each once: ${grouped(cost.runs)} trainings and ${grouped(cost.cells)} cells to do`,
  ];
  if (cost.runs + cost.cells > 0) {
    const unknown =
      cost.unknown > 0 ? ` and those of ${grouped(cost.unknown)} trainings whose rows or tokenizer are not here` : "";
    const { trainingSeconds: training, measuringSeconds: measuring } = cost;
    const whole = training === undefined || measuring === undefined ? undefined : training + measuring;
    const parts = `training ${timeText(training)}, measuring ${timeText(measuring)}; from ${cost.measured}`;
    lines.push(
      `tokens to train on: ${grouped(cost.tokens)}${unknown}`,
      `rows to measure: ${grouped(cost.rows)}`,
      ...(cost.measured
        ? [`time: ${cost.unknown > 0 && whole !== undefined ? "at least " : ""}${timeText(whole)} (${parts})`]
        : []),
      `disk: ${bytesText(cost.diskBytes)}`,
    );
  }
  for (const [why, cells] of Object.entries(cost.skipped)) lines.push(`left out: ${cells} cells (${why})`);
  const problems = problemsOf(plan);
  if (problems.length) {
    lines.push(
      "",
      paint("yellow", `${cost.blocked} cells cannot be measured as things are:`),
      ...shorten(problems, MOST_PROBLEMS).map((line) => `  ${line}`),
    );
  }
  return lines.join("\n");
}

/** The plan for programs. */
export function planJson(plan: Plan, cost: Cost): object {
  const runs = openRuns(plan).map(({ id, label, model, rows, steps, tokens, parameters, state, problems }) => ({
    ...{ id, label, model, rows, steps, tokens, parameters, state },
    problems: problems.map(({ message }) => message),
  }));
  const cells = plan.cells.map(({ id, label, cell, run, rows, state, skipped, problem }) => ({
    ...{ id, label, kind: cell.kind, run: run?.id ?? null, rows, state, skipped },
    ...(problem && { problem: problem.message }),
  }));
  const studies = [...plan.needs].map(([name, needed]) => ({ name, cells: needed.map(({ id }) => id) }));
  return { preset: plan.scope.name, model: plan.scope.model, cost, studies, runs, cells, problems: problemsOf(plan) };
}

export function resultsText({ studies }: Report): string {
  return studies
    .flatMap((study) =>
      study.tables.map(({ title, columns, rows, notes = [] }) => {
        if (rows.length === 0) return [paint("bold", study.title), ...notes].join("\n");
        const lines = rows.map((row) => columns.map((column) => valueText(row[column.key], column)));
        return `${paint("bold", `${study.title}: ${title}`)}\n${table(
          columns.map((column) => column.title),
          lines,
        )}`;
      }),
    )
    .join("\n\n");
}
