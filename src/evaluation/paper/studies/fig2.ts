/** @file Figure 2: which experts the layers choose, task by task. */
import { mean } from "../../../base/index.ts";
import { taskTitle } from "../paper.ts";
import type { CellOf, Scope, Study, Value } from "../study.ts";

const cellOf = (scope: Scope, task: string): CellOf<"routes"> => ({
  kind: "routes",
  training: { method: "milora", data: task === "mt_bench" ? scope.instructions : [task], seed: 0 },
  task,
});

const short = (expert: string): string => expert.replace(/_proj$/, "");

export const study: Study = {
  name: "fig2",
  title: "Figure 2: shares of the experts",
  about: "How often each expert of each layer is among the active ones, over the test prompts of a task.",
  cells: (scope) => scope.routed.map((task) => cellOf(scope, task)),
  render(scope, results) {
    const found = scope.routed.map((task) => ({ task, routes: results.get(cellOf(scope, task)) }));
    const experts = found.find(({ routes }) => routes)?.routes?.experts ?? [];
    const rows = found.map(({ task, routes }): Record<string, Value> => {
      const overall = experts.map((_, i) => routes && 100 * mean(routes.expert_shares.map((layer) => layer[i]!)));
      return {
        task: taskTitle(task),
        rows: routes?.rows,
        ...Object.fromEntries(experts.map((expert, i) => [expert, overall[i]])),
        largest: routes && Math.max(...overall.map((share) => share ?? 0)),
        routes: routes?.routes,
      };
    });
    return {
      tables: [
        {
          name: "fig2",
          title: "Shares over all layers, percent",
          columns: [
            { key: "task", title: "task" },
            { key: "rows", title: "prompts", digits: 0 },
            ...experts.map((expert) => ({ key: expert, title: short(expert) })),
            { key: "largest", title: "largest" },
            { key: "routes", title: "distinct routes", digits: 0 },
          ],
          rows,
          notes: ["The paper: no expert has more than 30 %. Seed 0."],
        },
      ],
      charts: found.flatMap(({ task, routes }) => {
        if (!routes) return [];
        const largest = Math.max(...routes.expert_shares.flat());
        return [
          {
            kind: "shares" as const,
            name: `fig2-${task}`,
            title: `${taskTitle(task)}: share of each expert (full colour: ${Math.round(100 * largest)} %)`,
            rows: routes.experts.map(short),
            columns: routes.expert_shares,
            most: largest,
            from: "layer 0",
            to: String(routes.expert_shares.length - 1),
          },
        ];
      }),
    };
  },
};
