/** @file Figures that turn one knob: a line for each method on each task, with the spread over seeds. */
import { TITLES, taskTitle } from "./paper.ts";
import { accuracyCells, accuracyFigure } from "./statistics.ts";
import type { Chart, Column, Figure, Line, Scope, Seedless, Study, Value } from "./study.ts";

export interface Sweep {
  readonly name: string;
  readonly title: string;
  readonly about: string;
  readonly methods: readonly string[];
  /** What the horizontal axis shows. */
  readonly x: string;
  /** What the knob is called. */
  readonly setting: string;
  values(scope: Scope): readonly number[];
  /** The adapter's settings for a value. */
  adapter(scope: Scope, value: number): Readonly<Record<string, unknown>>;
  /** Where a value lies on the horizontal axis. */
  at(scope: Scope, method: string, value: number): number;
  /** Names of 0, 1, … on the axis. */
  labels?(scope: Scope): readonly string[];
}

export function sweep(knob: Sweep): Study {
  const { name, title, about, methods, x, setting } = knob;
  const trainingOf = (scope: Scope, method: string, task: string, value: number): Seedless => ({
    method,
    data: [task],
    adapter: knob.adapter(scope, value),
  });
  return {
    name,
    title,
    about,
    cells: (scope) =>
      scope.studied.flatMap((task) =>
        methods.flatMap((method) =>
          knob.values(scope).flatMap((value) => accuracyCells(scope, trainingOf(scope, method, task, value), task)),
        ),
      ),
    render(scope, results) {
      const rows: Record<string, Value>[] = [];
      const charts = scope.studied.map((task): Chart => {
        const lines = methods.map((method, i): Line => {
          const found = knob.values(scope).flatMap((value): { at: number; figure: Figure }[] => {
            const figure = accuracyFigure(scope, results, trainingOf(scope, method, task, value), task);
            const at = figure ? knob.at(scope, method, value) : undefined;
            rows.push({ task: taskTitle(task), method: TITLES[method], value, at, accuracy: figure });
            return figure && at !== undefined ? [{ at, figure }] : [];
          });
          return {
            label: TITLES[method]!,
            colour: i + 1,
            points: found.map(({ at, figure }) => [at, figure.value] as const),
            spread: found.map(({ figure }) => [figure.low, figure.high] as const),
          };
        });
        const labels = knob.labels?.(scope);
        const heading = `${taskTitle(task)}: accuracy, percent`;
        return { kind: "lines", name: `${name}-${task}`, title: heading, x, lines, ...(labels && { labels }) };
      });
      const columns: Column[] = [
        { key: "task", title: "task" },
        { key: "method", title: "method" },
        { key: "value", title: setting, digits: "plain" },
        ...(knob.labels ? [] : [{ key: "at", title: x, digits: "plain" as const }]),
        { key: "accuracy", title: "accuracy" },
      ];
      const notes = [
        "Accuracy in percent: median of the seeds, in brackets the lowest and the highest. The paper has this as a figure only.",
      ];
      return { tables: [{ name, title: "Accuracy", columns, rows, notes }], charts };
    },
  };
}
