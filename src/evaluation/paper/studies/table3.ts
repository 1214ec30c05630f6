/** @file Table 3: what adapters tuned on instructions know. */
import { TABLE3, TITLES, taskTitle } from "../paper.ts";
import { accuracyCells, accuracyFigure } from "../statistics.ts";
import type { Cell, Study, Value } from "../study.ts";

const METHODS = ["moelora", "milora"];

export const study: Study = {
  name: "table3",
  title: "Table 3: instruction tuning",
  about: "Adapters tuned on instructions are measured on what they were not trained for.",
  cells: (scope) =>
    METHODS.flatMap((method): Cell[] => {
      const training = { method, data: scope.instructions };
      const judged: Cell[] = scope.judged
        ? Array.from({ length: scope.seeds }, (_, seed) => ({ kind: "judged", training: { ...training, seed } }))
        : [];
      return [...judged, ...scope.knowledge.flatMap((name) => accuracyCells(scope, training, name))];
    }),
  render(scope, results) {
    const rows = METHODS.map(
      (method): Record<string, Value> => ({
        method: TITLES[method],
        mt_bench: null,
        mt_bench_paper: TABLE3[method]?.mt_bench,
        ...Object.fromEntries(
          scope.knowledge.flatMap((name) => [
            [name, accuracyFigure(scope, results, { method, data: scope.instructions }, name)],
            [`${name}_paper`, TABLE3[method]?.[name]],
          ]),
        ),
      }),
    );
    const columns = [
      { key: "method", title: "method" },
      ...[...(scope.judged ? ["mt_bench"] : []), ...scope.knowledge].flatMap((name) => [
        { key: name, title: taskTitle(name) },
        ...(TABLE3.milora?.[name] === undefined
          ? []
          : [{ key: `${name}_paper`, title: "paper", digits: name === "mt_bench" ? 2 : 1 }]),
      ]),
    ];
    const notes = [
      "Accuracy in percent: median of the seeds, in brackets the lowest and the highest.",
      ...(scope.judged
        ? ["MT-Bench is scored by a judge (GPT-4 in the paper): none is asked here, its cells are left out."]
        : []),
    ];
    return { tables: [{ name: "table3", title: "After tuning", columns, rows, notes }], charts: [] };
  },
};
