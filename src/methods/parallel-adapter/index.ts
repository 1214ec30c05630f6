/** @file Parallel adapters (He et al. 2021, arXiv 2110.04366): y' = y + s · f(x D) U beside attention and feed-forward. */
import { z } from "zod";
import { parseWith } from "../../base/index.ts";
import { gelu, gemm, relu, silu, tanh, type Value } from "../../graph/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { BLOCKS, type Block, bottleneckKeys, bottleneckSpecs, bottleneckWidth } from "../bottleneck.ts";
import type { Method, ParameterSpec } from "../method.ts";
import { commonFields } from "../peft.ts";

const activations: Readonly<Record<"relu" | "gelu" | "silu" | "tanh", (x: Value) => Value>> = {
  relu,
  gelu,
  silu,
  tanh,
};

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("PARALLEL_ADAPTER"),
  bottleneck: bottleneckWidth.default(160).describe("width between the two matrices"),
  activation: z.enum(["relu", "gelu", "silu", "tanh"]).default("relu"),
  scaling: z.number().positive().default(1).describe("s; the paper's scaled form has 4"),
});

export type ParallelAdapterConfig = z.infer<typeof configSchema>;

const keysOf = (layer: number, block: Block) => bottleneckKeys(layer, block, "parallel_adapter");

function places({ numLayers }: BackboneConfig): { layer: number; block: Block }[] {
  return Array.from({ length: numLayers }, (_, layer) => BLOCKS.map((block) => ({ layer, block }))).flat();
}

function parameters(config: ParallelAdapterConfig, backbone: BackboneConfig): ParameterSpec[] {
  return places(backbone).flatMap(({ layer, block }) =>
    bottleneckSpecs(keysOf(layer, block), config.bottleneck, backbone.hiddenSize),
  );
}

export const parallelAdapter: Method<ParallelAdapterConfig> = {
  name: "parallel-adapter",
  peftType: "PARALLEL_ADAPTER",
  configSchema,
  properties: { routed: false, mergeable: false, startsAsIdentity: true, packable: true, causal: true },

  newConfig: (options) =>
    parseWith(configSchema, { peft_type: "PARALLEL_ADAPTER", task_type: "CAUSAL_LM", ...options }, "parallel-adapter"),

  parameters,

  countParameters(config, backbone) {
    const adapters = places(backbone).length * 2 * config.bottleneck * backbone.hiddenSize;
    return { tunable: { adapters }, activated: { adapters } };
  },

  isIdentity(_config, backbone, values) {
    return places(backbone).every(({ layer, block }) => values(keysOf(layer, block).up).every((v) => v === 0));
  },

  build({ config, parameter }) {
    const activate = activations[config.activation];
    return {
      hooks: {
        // The adapter reads what the sub-layer itself reads: the residual stream after the norm.
        block(layer, block, x, y) {
          const { down, up } = keysOf(layer, block);
          const low = activate(gemm(x, parameter(down), { transB: true })); // [N, b]
          return gemm(low, parameter(up), { c: y, transB: true, alpha: config.scaling }); // [N, d]
        },
      },
    };
  },
};
