/** @file IAPT (Zhu et al. 2024, arXiv 2405.18203): before every layer, soft prompts generated from the instruction. */
import { z } from "zod";
import { parseWith } from "../../base/index.ts";
import { add, gemm, matmul, reshape, softmax, transpose, unsqueeze, type Value } from "../../graph/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { bottleneckWidth } from "../bottleneck.ts";
import type { BuildContext, Method, ParameterSpec } from "../method.ts";
import { PromptMask } from "../milora/router.ts";
import { commonFields, KEY_PREFIX } from "../peft.ts";
import {
  geluDenominator,
  geluNumerator,
  rational,
  rationalCoefficients,
  rationalKeys,
  rationalSpecs,
} from "../rational.ts";

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("IAPT"),
  num_virtual_tokens: z.int().min(1).max(1024).default(4).describe("soft prompts before each layer"),
  bottleneck: bottleneckWidth.default(320).describe("width between the generator's two matrices"),
});

export type IaptConfig = z.infer<typeof configSchema>;

function keysOf(layer: number) {
  const path = `${KEY_PREFIX}model.layers.${layer}.iapt`;
  return {
    pooler: `${path}.pooler.weight`,
    down: `${path}.down.weight`,
    activation: `${path}.activation`,
    up: `${path}.up.weight`,
  };
}

function parameters(config: IaptConfig, { numLayers, hiddenSize: d }: BackboneConfig): ParameterSpec[] {
  const { bottleneck: b, num_virtual_tokens: tokens } = config;
  return Array.from({ length: numLayers }, (_, layer): ParameterSpec[] => {
    const keys = keysOf(layer);
    return [
      { key: keys.pooler, shape: [tokens, d], init: { kind: "normal", std: 0.02 }, group: "weights" },
      { key: keys.down, shape: [b, d], init: { kind: "kaimingUniform", fanIn: d }, group: "weights" },
      ...rationalSpecs(keys.activation),
      // Not zero: a soft prompt of zeros takes its share of the attention too, and the norm has no gradient to speak of there.
      { key: keys.up, shape: [d, b], init: { kind: "kaimingUniform", fanIn: b }, group: "weights" },
    ];
  }).flat();
}

/**
 * The soft prompts of a layer for each prompt of the batch, [B · tokens, d], from its residual stream [N, d]: pooled by
 * as many attentions as there are soft prompts, then through the bottleneck.
 */
function softPrompts(context: BuildContext<IaptConfig>, layer: number, hidden: Value, prompt: PromptMask): Value {
  const { config, parameter } = context;
  const { num_virtual_tokens: tokens } = config;
  const keys = keysOf(layer);
  const { batch: B, length: T } = prompt;
  const d = hidden.shape[1]!;
  const scores = reshape(gemm(hidden, parameter(keys.pooler), { transB: true }), [B, T, tokens]);
  const weights = softmax(add(transpose(scores, [0, 2, 1]), unsqueeze(prompt.penalty, [1])), -1); // [B, tokens, T]
  const pooled = matmul(weights, reshape(hidden, [B, T, d])); // [B, tokens, d]
  const rows = reshape(pooled, [-1, d]); // [B · tokens, d]
  const { numerator, denominator } = rationalKeys(keys.activation);
  const coefficients = rationalCoefficients(parameter(numerator), parameter(denominator));
  const low = rational(gemm(rows, parameter(keys.down), { transB: true }), coefficients); // [B · tokens, b]
  return gemm(low, parameter(keys.up), { transB: true });
}

export const iapt: Method<IaptConfig> = {
  name: "iapt",
  peftType: "IAPT",
  configSchema,
  properties: { routed: false, mergeable: false, startsAsIdentity: false },

  newConfig: (options) => parseWith(configSchema, { peft_type: "IAPT", task_type: "CAUSAL_LM", ...options }, "iapt"),

  prefixLength: (config) => config.num_virtual_tokens,

  parameters,

  countParameters(config, { numLayers, hiddenSize: d }) {
    const counts = {
      generators: numLayers * 2 * d * config.bottleneck,
      poolers: numLayers * d * config.num_virtual_tokens,
      activations: numLayers * (geluNumerator.length + geluDenominator.length),
    };
    return { tunable: counts, activated: counts };
  },

  isIdentity: () => false, // whatever the soft prompts are, they draw attention

  lower: () => [], // the KV cache holds the soft prompts

  build(context) {
    const { config, phase } = context;
    if (phase.kind === "decode") return { hooks: {} }; // the KV cache holds the soft prompts
    const prompt = new PromptMask(phase.promptMask);
    const made = new Map<number, Value>();
    return {
      hooks: {
        beforeLayer(layer, hidden) {
          made.set(layer, softPrompts(context, layer, hidden, prompt));
        },
        prefix(layer, own) {
          const { key, value } = own(made.get(layer)!); // [B · tokens, kv] each
          const perPrompt = (rows: Value): Value =>
            reshape(rows, [prompt.batch, config.num_virtual_tokens, rows.shape[1]!]);
          return { length: config.num_virtual_tokens, key: perPrompt(key), value: perPrompt(value) };
        },
      },
    };
  },
};
