/** @file Table 5: poolers and activations of MiLoRA's routers. */
import { TABLE5, taskTitle } from "../paper.ts";
import { accuracyCells, accuracyFigure, compare } from "../statistics.ts";
import type { Scope, Seedless, Study, Value } from "../study.ts";

interface Variant {
  readonly name: string;
  readonly what: string;
  adapter(layers: number): Readonly<Record<string, unknown>> | undefined;
}

const halves = (first: string, second: string) => (layers: number) => ({
  activation: Array.from({ length: layers }, (_, layer) => (layer < layers / 2 ? first : second)),
});

const VARIANTS: readonly Variant[] = [
  { name: "MiLoRA", what: "self-attention pooler, learned activation", adapter: () => undefined },
  { name: "MiLoRA-1", what: "mean pooler", adapter: () => ({ pooler: "mean" }) },
  { name: "MiLoRA-2", what: "last token", adapter: () => ({ pooler: "last" }) },
  { name: "MiLoRA-3", what: "GELU", adapter: () => ({ activation: "gelu" }) },
  {
    name: "MiLoRA-4",
    what: "ReLU in the first half of the layers, GELU in the second",
    adapter: halves("relu", "gelu"),
  },
  {
    name: "MiLoRA-5",
    what: "GELU in the first half of the layers, ReLU in the second",
    adapter: halves("gelu", "relu"),
  },
];

function trainingOf(scope: Scope, variant: Variant, data: readonly string[]): Seedless {
  const adapter = variant.adapter(scope.backbone?.numLayers ?? 1);
  return { method: "milora", data, ...(adapter && { adapter }) };
}

/** The studied tasks, each trained by itself, and MMLU after tuning on instructions. */
function columnsOf(scope: Scope): { name: string; data: readonly string[] }[] {
  const tuned = scope.knowledge.includes("mmlu") ? [{ name: "mmlu", data: scope.instructions }] : [];
  return [...scope.studied.map((name) => ({ name, data: [name] })), ...tuned];
}

export const study: Study = {
  name: "table5",
  title: "Table 5: ablations",
  about: "MiLoRA's routers with other poolers and activations.",
  cells: (scope) =>
    VARIANTS.flatMap((variant) =>
      columnsOf(scope).flatMap(({ name, data }) => accuracyCells(scope, trainingOf(scope, variant, data), name)),
    ),
  render(scope, results) {
    const measured = columnsOf(scope);
    const rows = VARIANTS.map(
      (variant): Record<string, Value> => ({
        name: variant.name,
        what: variant.what,
        ...Object.fromEntries(
          measured.flatMap(({ name, data }): [string, Value][] => {
            const training = trainingOf(scope, variant, data);
            const test = compare(scope, results, [training, trainingOf(scope, VARIANTS[0]!, data)], [name]);
            return [
              [name, accuracyFigure(scope, results, training, name)],
              [`${name}_paper`, TABLE5[variant.name]?.[name]],
              [`${name}_p`, test?.p],
            ];
          }),
        ),
      }),
    );
    const columns = [
      { key: "name", title: "variant" },
      { key: "what", title: "" },
      ...measured.flatMap(({ name }) => [
        { key: name, title: taskTitle(name) },
        { key: `${name}_p`, title: "p", digits: 3 },
        ...(TABLE5.MiLoRA?.[name] === undefined ? [] : [{ key: `${name}_paper`, title: "paper" }]),
      ]),
    ];
    const notes = [
      "Accuracy in percent: median of the seeds, in brackets the lowest and the highest.",
      "p: paired bootstrap over the test rows, against MiLoRA; not corrected for the number of comparisons.",
    ];
    return { tables: [{ name: "table5", title: "Accuracy", columns, rows, notes }], charts: [] };
  },
};
