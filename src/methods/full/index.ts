/** @file Full fine-tuning, the method to compare with: every weight of the backbone is trained, as W + Δ with Δ from 0. */
import { z } from "zod";
import { parseWith } from "../../base/index.ts";
import { gemm } from "../../graph/index.ts";
import { type ParameterKind, parametersOf } from "../../models/index.ts";
import type { Method } from "../method.ts";
import { commonFields, KEY_PREFIX } from "../peft.ts";

const configSchema = z.looseObject({ ...commonFields, peft_type: z.literal("FULL") });

export type FullConfig = z.infer<typeof configSchema>;

/** Δ of a weight; in its shape. */
function keyOf(weight: string): string {
  return `${KEY_PREFIX}${weight.replace(/\.weight$/, "")}.delta`;
}

export const full: Method<FullConfig> = {
  name: "full",
  peftType: "FULL",
  configSchema,
  properties: { routed: false, mergeable: true, startsAsIdentity: true, causal: true },
  changesHead: true,

  newConfig: (options) => parseWith(configSchema, { peft_type: "FULL", task_type: "CAUSAL_LM", ...options }, "full"),

  parameters: (_, backbone) =>
    parametersOf(backbone).map(({ name, shape }) => ({
      key: keyOf(name),
      shape,
      init: { kind: "zeros" },
      group: "weights",
    })),

  countParameters(_, backbone) {
    const counts: Partial<Record<ParameterKind, number>> = {};
    for (const { kind, shape } of parametersOf(backbone)) {
      counts[kind] = (counts[kind] ?? 0) + shape.reduce((a, b) => a * b, 1);
    }
    return { tunable: counts, activated: counts };
  },

  isIdentity: (_, backbone, values) =>
    parametersOf(backbone).every(({ name }) => values(keyOf(name)).every((value) => value === 0)),

  build: ({ parameter }) => ({
    hooks: {
      linear: (site, x, y) => gemm(x, parameter(keyOf(`${site.path}.weight`)), { c: y, transB: true }), // [N, out]
      change: (name) => parameter(keyOf(name)),
    },
  }),

  merge: ({ parameter }, name) => parameter(keyOf(name)),
};
