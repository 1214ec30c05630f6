/** @file MOELoRA (Liu et al. 2023, arXiv 2310.18339): each LoRA is a mixture of small experts, routed per token. */
import { parseWith } from "../../base/index.ts";
import { add, gemm, mul, type Value } from "../../graph/index.ts";
import { type BackboneConfig, moduleNames, type Site } from "../../models/index.ts";
import { loraKeys, loraSpecs } from "../lora/index.ts";
import type { Method, ParameterSpec } from "../method.ts";
import { configSchema, type MoeloraConfig, scalingOf, targetsOf } from "./config.ts";
import { loadBalance, type Mixture, mix, promptWeights, routerKey } from "./router.ts";

export type { MoeloraConfig } from "./config.ts";

/** Path of the sub-layer that a module belongs to. */
const blockOf = (site: Site): string => site.path.slice(0, site.path.lastIndexOf("."));

function parameters(config: MoeloraConfig, backbone: BackboneConfig): ParameterSpec[] {
  return targetsOf(config, backbone).flatMap((site): ParameterSpec[] => [
    ...loraSpecs(site, config.r),
    {
      key: routerKey(site),
      shape: [config.num_experts, backbone.hiddenSize],
      init: { kind: "normal", std: 0.02 }, // as MiLoRA's: at first every expert has about the same probability
      group: "weights",
    },
  ]);
}

export const moelora: Method<MoeloraConfig> = {
  name: "moelora",
  peftType: "MOELORA",
  configSchema,
  // Its routes are those of tokens, not of prompts.
  properties: { routed: false, mergeable: false, startsAsIdentity: true, causal: true },

  newConfig(options, backbone) {
    const defaults = { peft_type: "MOELORA", task_type: "CAUSAL_LM", target_modules: moduleNames(backbone) };
    const config = parseWith(configSchema, { ...defaults, ...options }, "moelora");
    targetsOf(config, backbone);
    return { ...config, lora_alpha: config.lora_alpha ?? config.r };
  },

  parameters,

  countParameters(config, backbone) {
    const sites = targetsOf(config, backbone);
    const experts = sites.reduce((total, s) => total + config.r * (s.inFeatures + s.outFeatures), 0);
    const routers = sites.length * config.num_experts * backbone.hiddenSize;
    return {
      tunable: { experts, routers },
      activated: { experts: (experts * config.top_k) / config.num_experts, routers },
    };
  },

  isIdentity(config, backbone, values) {
    return targetsOf(config, backbone).every((site) => values(loraKeys(site).b).every((v) => v === 0));
  },

  build(context) {
    const { config, backbone, parameter, phase } = context;
    const targets = targetsOf(config, backbone);
    const targeted = new Set(targets.map(({ path }) => path));
    const mixtures = new Map<string, Mixture>();
    /** Made where the sub-layer's first module runs, whose x is the sub-layer's input. */
    const mixtureOf = (site: Site, x: Value): Mixture => {
      const block = blockOf(site);
      const made =
        mixtures.get(block) ??
        mix(
          context,
          block,
          targets.filter((s) => blockOf(s) === block),
          x,
        );
      mixtures.set(block, made);
      return made;
    };
    const blocks = new Set(targets.map(blockOf));
    return {
      hooks: {
        linear(site, x, y) {
          if (!blocks.has(blockOf(site))) return y;
          const { low, gates } = mixtureOf(site, x);
          if (!targeted.has(site.path)) return y;
          const { a, b } = loraKeys(site);
          const gated = low.get(site.path) ?? mul(gemm(x, parameter(a), { transB: true }), gates.get(site.path)!);
          return gemm(gated, parameter(b), { c: y, transB: true, alpha: scalingOf(config) }); // [N, out]
        },
      },
      losses() {
        const { load_balance_coefficient: coefficient, top_k } = config;
        if (phase.kind !== "train" || coefficient === 0) return new Map();
        const all = [...mixtures.values()];
        const weights = promptWeights(phase.promptMask, all[0]!.logits.shape[0]!);
        const total = all.map((mixture) => loadBalance(mixture, weights, top_k)).reduce((a, b) => add(a, b));
        return new Map([["load_balance", mul(total, coefficient / targets.length)]]);
      },
    };
  },
};
