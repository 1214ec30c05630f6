/** @file Figure 3: accuracy against the share of experts that are active. */
import { sweep } from "../sweep.ts";

/** Experts of a layer (its modules), and of a module. */
const EXPERTS: Readonly<Record<string, number>> = { milora: 7, moelora: 8 };

export const study = sweep({
  name: "fig3",
  title: "Figure 3: number of active experts",
  about: "MiLoRA and MOELoRA with k of their experts active.",
  methods: ["milora", "moelora"],
  x: "share of the experts that are active",
  setting: "k",
  values: (scope) => scope.ks,
  adapter: (_, k) => ({ top_k: k }),
  at: (_, method, k) => k / EXPERTS[method]!,
});
