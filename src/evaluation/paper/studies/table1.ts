/** @file Table 1: all methods, each task trained and measured by itself. */
import { sum } from "../../../base/index.ts";
import { methodOf } from "../../../methods/index.ts";
import { TABLE1, TITLES, table1Score, taskTitle } from "../paper.ts";
import { accuracyCells, accuracyFigure, averageOf, compare } from "../statistics.ts";
import type { Scope, Seedless, Study, Table, Value } from "../study.ts";

const trainingOf = (method: string, task: string): Seedless => ({ method, data: [task] });

/** In millions: tunable, and the most that a token can use. */
function parametersOf({ backbone, settings }: Scope, name: string): { tunable: number; activated: number } | undefined {
  if (!backbone) return undefined;
  const method = methodOf(name);
  const { tunable, activated } = method.countParameters(
    method.newConfig(settings(name, 0, []).adapter, backbone),
    backbone,
  );
  const millions = (parts: Readonly<Record<string, number>>) => sum(Object.values(parts)) / 1e6;
  return { tunable: millions(tunable), activated: millions(activated) };
}

function mainTable(scope: Scope, results: Parameters<Study["render"]>[1]): Table {
  const isPapers = scope.tasks.some((task) => table1Score("lora", task) !== undefined);
  const digits = scope.backbone && scope.backbone.hiddenSize < 1024 ? 3 : 1;
  const columns = [
    { key: "method", title: "method" },
    { key: "tunable", title: "tunable, M", digits },
    ...(isPapers ? [{ key: "tunable_paper", title: "paper" }] : []),
    { key: "activated", title: "activated, M", digits },
    ...(isPapers ? [{ key: "activated_paper", title: "paper" }] : []),
    ...scope.tasks.flatMap((task) => [
      { key: task, title: taskTitle(task) },
      ...(table1Score("lora", task) === undefined ? [] : [{ key: `${task}_paper`, title: "paper" }]),
    ]),
    { key: "average", title: "average" },
    { key: "average_paper", title: isPapers ? "paper" : "paper, its tasks" },
  ];
  const rows = scope.methods.map((method): Record<string, Value> => {
    const figures = scope.tasks.map((task) => accuracyFigure(scope, results, trainingOf(method, task), task));
    return {
      method: TITLES[method] ?? method,
      ...parametersOf(scope, method),
      tunable_paper: TABLE1[method]?.tunable,
      activated_paper: TABLE1[method]?.activated,
      ...Object.fromEntries(scope.tasks.map((task, i) => [task, figures[i]])),
      ...Object.fromEntries(scope.tasks.map((task) => [`${task}_paper`, table1Score(method, task)])),
      average: averageOf(figures),
      average_paper: table1Score(method, "average"),
    };
  });
  const notes = ["Accuracy in percent: median of the seeds, in brackets the lowest and the highest."];
  return { name: "table1", title: "Accuracy", columns, rows, notes };
}

/** MiLoRA against every other method, row by row. */
function tests(scope: Scope, results: Parameters<Study["render"]>[1]): Table {
  const own = "milora";
  const rows = scope.methods
    .filter((method) => method !== own)
    .flatMap((method) => {
      const trained = (name: string, task: string): [Seedless, Seedless] => [
        trainingOf(own, task),
        trainingOf(name, task),
      ];
      return scope.tasks.map((task): Record<string, Value> => {
        const found = compare(scope, results, trained(method, task), [task]);
        return { method: TITLES[method] ?? method, task: taskTitle(task), ...found };
      });
    });
  return {
    name: "table1-tests",
    title: "MiLoRA minus each method, in points",
    columns: [
      { key: "method", title: "method" },
      { key: "task", title: "task" },
      { key: "difference", title: "difference", digits: 2 },
      { key: "low", title: "from", digits: 2 },
      { key: "high", title: "to", digits: 2 },
      { key: "p", title: "p", digits: 3 },
    ],
    rows,
    notes: [
      "Paired bootstrap over the test rows, interval at 95 %; a row's score is its mean over seeds, so the difference is one of means, not of medians. p is not corrected for the number of comparisons.",
    ],
  };
}

export const study: Study = {
  name: "table1",
  title: "Table 1: all methods",
  about: "Every method is trained on each task by itself and measured on its test rows.",
  cells: (scope) =>
    scope.methods.flatMap((method) =>
      scope.tasks.flatMap((task) => accuracyCells(scope, trainingOf(method, task), task)),
    ),
  render: (scope, results) => ({ tables: [mainTable(scope, results), tests(scope, results)], charts: [] }),
};
