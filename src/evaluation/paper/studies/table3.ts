/** @file Table 3: what adapters tuned on instructions know. */
import { sum } from "../../../base/index.ts";
import { TABLE3, TITLES, taskTitle } from "../paper.ts";
import { accuracyCells, accuracyFigure, figureOf } from "../statistics.ts";
import type { Cell, CellOf, Results, Scope, Study, Value, Values } from "../study.ts";

const METHODS = ["moelora", "milora"];

const judgedCell = (scope: Scope, method: string, seed: number): CellOf<"judged"> => ({
  kind: "judged",
  training: { method, data: scope.instructions, seed },
});

const judgedBy = (scope: Scope, results: Results, method: string): Values["judged"][] =>
  Array.from({ length: scope.seeds }, (_, seed) => results.get(judgedCell(scope, method, seed)) ?? []).flat();

const digitsOf = (name: string): number => (name === "mt_bench" ? 2 : 1);

function judgeNote(found: readonly Values["judged"][]): string {
  if (found.length === 0) {
    return "MT-Bench is scored by a judge (GPT-4 in the paper): none is asked here, its cells are left out.";
  }
  const judges = [...new Set(found.map(({ judge }) => judge))].join(", ");
  const unjudged = sum(found.map((cell) => cell.unjudged));
  const without = unjudged > 0 ? ` ${unjudged} judgements have no rating and are left out.` : "";
  return `MT-Bench: mean rating from 1 to 10 by ${judges} (GPT-4 in the paper), median of the seeds.${without}`;
}

export const study: Study = {
  name: "table3",
  title: "Table 3: instruction tuning",
  about: "Adapters tuned on instructions are measured on what they were not trained for.",
  cells: (scope) =>
    METHODS.flatMap((method): Cell[] => {
      const training = { method, data: scope.instructions };
      const judged: Cell[] = scope.judged
        ? Array.from({ length: scope.seeds }, (_, seed) => judgedCell(scope, method, seed))
        : [];
      return [...judged, ...scope.knowledge.flatMap((name) => accuracyCells(scope, training, name))];
    }),
  render(scope, results) {
    const rows = METHODS.map(
      (method): Record<string, Value> => ({
        method: TITLES[method],
        mt_bench: figureOf(judgedBy(scope, results, method).flatMap(({ value }) => value ?? [])),
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
        { key: name, title: taskTitle(name), digits: digitsOf(name) },
        ...(TABLE3.milora?.[name] === undefined
          ? []
          : [{ key: `${name}_paper`, title: "paper", digits: digitsOf(name) }]),
      ]),
    ];
    const notes = [
      "Accuracy in percent: median of the seeds, in brackets the lowest and the highest.",
      ...(scope.judged ? [judgeNote(METHODS.flatMap((method) => judgedBy(scope, results, method)))] : []),
    ];
    return { tables: [{ name: "table3", title: "After tuning", columns, rows, notes }], charts: [] };
  },
};
