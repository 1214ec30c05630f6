/** @file Table 2: one adapter for each task, and one for all of them. */
import { TABLE2, TITLES, taskTitle } from "../paper.ts";
import { accuracyCells, accuracyFigure, averageOf } from "../statistics.ts";
import type { Study, Value } from "../study.ts";

const METHODS = ["lora", "moelora", "dora", "milora"];

export const study: Study = {
  name: "table2",
  title: "Table 2: multi-task training",
  about: "Adapters trained on one task are compared with adapters trained on the mix of all.",
  cells: (scope) =>
    METHODS.flatMap((method) =>
      scope.mix.flatMap((task) => [
        ...accuracyCells(scope, { method, data: [task] }, task),
        ...accuracyCells(scope, { method, data: scope.mix }, task),
      ]),
    ),
  render(scope, results) {
    const rows = METHODS.flatMap((method) =>
      (["single", "mixed"] as const).map((way): Record<string, Value> => {
        const figures = scope.mix.map((task) =>
          accuracyFigure(scope, results, { method, data: way === "single" ? [task] : scope.mix }, task),
        );
        return {
          method: TITLES[method],
          way: way === "single" ? "one task each" : "mixed",
          ...Object.fromEntries(scope.mix.map((task, i) => [task, figures[i]])),
          average: averageOf(figures),
          paper: TABLE2[method]?.[way],
        };
      }),
    );
    const columns = [
      { key: "method", title: "method" },
      { key: "way", title: "trained on" },
      ...scope.mix.map((task) => ({ key: task, title: taskTitle(task) })),
      { key: "average", title: "average" },
      { key: "paper", title: "paper, its tasks" },
    ];
    const notes = ["Accuracy in percent: median of the seeds, in brackets the lowest and the highest."];
    return { tables: [{ name: "table2", title: "Accuracy", columns, rows, notes }], charts: [] };
  },
};
