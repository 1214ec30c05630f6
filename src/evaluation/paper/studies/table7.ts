/** @file Table 7: other backbones. */
import { basename } from "node:path";
import { TABLE7, TITLES, taskTitle } from "../paper.ts";
import { accuracyCells, accuracyFigure } from "../statistics.ts";
import type { Scope, Study, Value } from "../study.ts";

/** Instead of a table without rows. */
const FILL =
  "No other backbone is bundled, so there is nothing to set side by side. To fill this table, name the directories of some: `milora reproduce table7 --backbone DIR --backbone DIR`, with the same --preset and --output.";

const METHODS = ["moelora", "milora"];

function columnsOf(scope: Scope): { name: string; data: readonly string[] }[] {
  const tuned = scope.knowledge.includes("mmlu") ? [{ name: "mmlu", data: scope.instructions }] : [];
  return [...scope.studied.map((name) => ({ name, data: [name] })), ...tuned];
}

export const study: Study = {
  name: "table7",
  title: "Table 7: other backbones",
  about: "MiLoRA and MOELoRA on other backbones.",
  cells: (scope) =>
    scope.backbones.flatMap((model) =>
      METHODS.flatMap((method) =>
        columnsOf(scope).flatMap(({ name, data }) => accuracyCells(scope, { method, data, model }, name)),
      ),
    ),
  render(scope, results) {
    const measured = columnsOf(scope);
    const rows = scope.backbones.flatMap((model) =>
      METHODS.map((method): Record<string, Value> => {
        const paper = TABLE7[basename(model).toLowerCase()]?.[method];
        return {
          model: basename(model),
          method: TITLES[method],
          ...Object.fromEntries(
            measured.flatMap(({ name, data }): [string, Value][] => [
              [name, accuracyFigure(scope, results, { method, data, model }, name)],
              [`${name}_paper`, paper?.[name]],
            ]),
          ),
        };
      }),
    );
    const columns = [
      { key: "model", title: "backbone" },
      { key: "method", title: "method" },
      ...measured.flatMap(({ name }) => [
        { key: name, title: taskTitle(name) },
        { key: `${name}_paper`, title: "paper" },
      ]),
    ];
    const notes =
      scope.backbones.length === 0
        ? [FILL]
        : ["Accuracy in percent: median of the seeds, in brackets the lowest and the highest."];
    return { tables: [{ name: "table7", title: "Accuracy", columns, rows, notes }], charts: [] };
  },
};
