/** @file Figure 5: accuracy against the number of tunable parameters. */
import { sum } from "../../../base/index.ts";
import { methodOf } from "../../../methods/index.ts";
import { sweep } from "../sweep.ts";

export const study = sweep({
  name: "fig5",
  title: "Figure 5: parameter budgets",
  about: "Methods with other ranks.",
  methods: ["milora", "moelora", "lora"],
  x: "tunable parameters, millions",
  setting: "r",
  values: (scope) => scope.ranks,
  adapter: (scope, r) => scope.rank(r),
  at({ backbone, settings, rank }, name, r) {
    if (!backbone) return r;
    const method = methodOf(name);
    const config = method.newConfig({ ...settings(name, 0, []).adapter, ...rank(r) }, backbone);
    const { tunable } = method.countParameters(config, backbone);
    return sum(Object.values(tunable)) / 1e6;
  },
});
