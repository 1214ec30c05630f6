/** @file Figure 4: accuracy against the weight of the load-balance loss. */
import { sweep } from "../sweep.ts";

export const study = sweep({
  name: "fig4",
  title: "Figure 4: load balance",
  about: "MiLoRA with other weights of the load-balance loss (eq. 5).",
  methods: ["milora"],
  x: "λ",
  setting: "λ",
  values: (scope) => scope.balance,
  adapter: (_, weight) => ({ balance: "load", load_balance_coefficient: weight }),
  labels: (scope) => scope.balance.map(String),
  at: (scope, _, weight) => scope.balance.indexOf(weight),
});
