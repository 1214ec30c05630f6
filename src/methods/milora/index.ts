/** @file MiLoRA (Zhang et al. 2024, arXiv 2410.18035): a layer's LoRA modules are experts, routed once per prompt. */
import { sum } from "../../base/index.ts";
import { add, concat, gemm, mul, reshape, split, sub, type Value } from "../../graph/index.ts";
import { type BackboneConfig, moduleNames, type Site, type SiteWeight } from "../../models/index.ts";
import { doraOutput, doraSpecs, loweredDora } from "../dora/index.ts";
import { loraKeys, loraLow, loraSpecs } from "../lora/index.ts";
import type { BuildContext, Method, MethodGraph, Packing, ParameterSpec } from "../method.ts";
import { geluDenominator, geluNumerator } from "../rational.ts";
import { activationOf, configSchema, expertsOf, type MiloraConfig, newConfigOf, scalingOf } from "./config.ts";
import {
  attention,
  information,
  loadBalance,
  loweredRouter,
  PromptMask,
  type Routes,
  route,
  routerSpecs,
} from "./router.ts";

export type { MiloraConfig } from "./config.ts";

/** An expert's index in its layer, by site path. */
function expertIndex(layers: readonly (readonly Site[])[]): ReadonlyMap<string, number> {
  return new Map(layers.flatMap((experts) => experts.map((site, index) => [site.path, index] as const)));
}

/**
 * y + gate · (what the expert changes). The gate [N, 1] is 1 where there is none. With LoRA it scales the narrow
 * [N, r] product, with DoRA the whole change y_DoRA − y.
 */
function expert(
  context: BuildContext<MiloraConfig>,
  site: Site,
  x: Value,
  y: Value,
  weight: SiteWeight,
  gate: Value | undefined,
): Value {
  if (context.config.use_dora) {
    const changed = doraOutput(context, site, scalingOf(context.config), x, y, weight); // [N, out]
    return gate === undefined ? changed : add(y, mul(sub(changed, y), gate));
  }
  const { a, b } = loraKeys(site);
  const low = gemm(x, context.parameter(a), { transB: true }); // [N, r]
  const gated = gate === undefined ? low : mul(low, gate);
  return gemm(gated, context.parameter(b), { c: y, transB: true, alpha: scalingOf(context.config) }); // [N, out]
}

/** Training and prefill: the router of a layer runs where the prompt reaches it, and gates that layer's experts. */
function buildRouted(
  context: BuildContext<MiloraConfig>,
  { promptMask, packing, progress }: { promptMask: Value; packing?: Packing; progress?: Value },
): MethodGraph {
  const { config, backbone, parameter } = context;
  const index = expertIndex(expertsOf(config, backbone));
  const prompt = new PromptMask(promptMask, packing);
  const experts = config.target_modules.length;
  const routes: Routes[] = [];
  let gates: Value[] = []; // of the current layer, [N, 1] each
  const perLayer = (values: readonly Value[]) => reshape(concat(values, 1), [prompt.batch, values.length, experts]); // [B, L, E]
  return {
    hooks: {
      beforeLayer(layer, hidden) {
        const routed = route(config, layer, hidden, prompt, parameter, progress);
        routes.push(routed);
        gates = split(prompt.spread(routed.trained), 1, new Array<number>(experts).fill(1));
      },
      linear(site, x, y, weight) {
        const i = index.get(site.path);
        return i === undefined ? y : expert(context, site, x, y, weight, gates[i]);
      },
    },
    losses() {
      if (config.load_balance_coefficient === 0) return new Map();
      const [name, loss] =
        config.balance === "load" ? (["load_balance", loadBalance] as const) : (["information", information] as const);
      const total = routes.map(loss).reduce((a, b) => add(a, b));
      return new Map([[name, mul(total, config.load_balance_coefficient / backbone.numLayers)]]);
    },
    state: () => new Map([["gates", perLayer(routes.map((r) => r.gates))]]),
    reports: () => new Map([["probabilities", perLayer(routes.map((r) => r.probabilities))]]),
  };
}

/** Decoding: no router. Gates are the prefill's, or, under one known route, the other experts are simply not there. */
function buildDecode(
  context: BuildContext<MiloraConfig>,
  phase: Extract<BuildContext<MiloraConfig>["phase"], { kind: "decode" }>,
): MethodGraph {
  const { config, backbone } = context;
  const index = expertIndex(expertsOf(config, backbone));
  const experts = config.target_modules.length;
  const active = phase.route?.map((indices) => new Set(indices));
  let gates: readonly Value[] | undefined;
  const gateOf = (layer: number, i: number): Value => {
    if (gates === undefined) {
      const state = phase.state("gates", [backbone.numLayers, experts]); // [B, L, E]
      const count = backbone.numLayers * experts;
      gates = split(reshape(state, [state.shape[0]!, count]), 1, new Array<number>(count).fill(1));
    }
    return gates[layer * experts + i]!; // [B, 1]
  };
  // Under a known route an active straight-through expert has weight 1 and needs no gate at all.
  const gated = active === undefined || config.gate !== "straight_through";
  return {
    hooks: {
      linear(site, x, y, weight) {
        const i = index.get(site.path);
        if (i === undefined || (active !== undefined && !active[site.layer]!.has(i))) return y;
        return expert(context, site, x, y, weight, gated ? gateOf(site.layer, i) : undefined);
      },
    },
  };
}

function parameters(config: MiloraConfig, backbone: BackboneConfig): ParameterSpec[] {
  return expertsOf(config, backbone).flatMap((experts, layer) => [
    ...experts.flatMap((site) => (config.use_dora ? doraSpecs : loraSpecs)(site, config.r)),
    ...routerSpecs(config, layer, backbone.hiddenSize),
  ]);
}

export const milora: Method<MiloraConfig> = {
  name: "milora",
  peftType: "MILORA",
  configSchema,
  properties: { routed: true, mergeable: false, startsAsIdentity: true, packable: true },

  newConfig(options, backbone) {
    const config = newConfigOf({ target_modules: moduleNames(backbone), ...options });
    expertsOf(config, backbone);
    return config;
  },

  interim: (config, progress) => progress < config.anneal,

  routing: ({ target_modules, top_k, pooler }) => ({ experts: target_modules, active: top_k, pooler }),

  attention: ({ config, promptMask, parameter }) => attention(config, new PromptMask(promptMask), parameter),

  parameters,

  countParameters(config, backbone) {
    const { hiddenSize: d } = backbone;
    const layers = expertsOf(config, backbone);
    const lora = (s: Site) => config.r * (s.inFeatures + s.outFeatures);
    const outputs = (s: Site) => s.outFeatures;
    const largest = (sizes: number[]) => sum(sizes.sort((a, b) => b - a).slice(0, config.top_k));
    const all = (size: (s: Site) => number) => sum(layers.flat().map(size));
    const active = (size: (s: Site) => number) => sum(layers.map((experts) => largest(experts.map(size))));
    const router = {
      routers: layers.length * config.target_modules.length * d,
      poolers: config.pooler === "self_attention" ? layers.length * d : 0,
      activations:
        layers.filter((_, layer) => activationOf(config, layer) === "rational").length *
        (geluNumerator.length + geluDenominator.length),
    };
    return {
      tunable: { experts: all(lora), ...(config.use_dora && { magnitudes: all(outputs) }), ...router },
      activated: { experts: active(lora), ...(config.use_dora && { magnitudes: active(outputs) }), ...router },
    };
  },

  isIdentity(config, backbone, values) {
    return expertsOf(config, backbone)
      .flat()
      .every((site) => values(loraKeys(site).b).every((v) => v === 0));
  },

  lower({ config, backbone, values, derived }) {
    return expertsOf(config, backbone).flatMap((experts) =>
      experts.map((site, expert) => {
        const low = loraLow(site, config.r, scalingOf(config), values);
        return { ...(config.use_dora ? loweredDora(site, low, derived) : { site, low }), expert };
      }),
    );
  },

  lowerRouters({ config, backbone, values }) {
    return Array.from({ length: backbone.numLayers }, (_, layer) => loweredRouter(config, layer, values));
  },

  build(context) {
    const { phase } = context;
    return phase.kind === "decode" ? buildDecode(context, phase) : buildRouted(context, phase);
  },
};
