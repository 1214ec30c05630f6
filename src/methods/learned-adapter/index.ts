/** @file Learned adapters (Zhang et al. 2023): bottlenecks whose activation function and whose place are learned. */
import { parseWith } from "../../base/index.ts";
import { add, gemm, mul, sigmoid, split, type Value } from "../../graph/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { BLOCKS, bottleneckSpecs } from "../bottleneck.ts";
import type { BuildContext, Method, ParameterSpec } from "../method.ts";
import {
  geluDenominator,
  geluNumerator,
  rational,
  rationalCoefficients,
  rationalKeys,
  rationalSpecs,
} from "../rational.ts";
import { configSchema, FORMS, type LearnedAdapterConfig, type Place, placesOf } from "./config.ts";
import { keysOf } from "./keys.ts";
import { found } from "./search.ts";

export type { LearnedAdapterConfig, Placement } from "./config.ts";

/** The paper's budget on LLaMA-2 7B is that of 62 adapters, of 64 places. */
const KEPT_SHARE = 62 / 64;

function parameters(config: LearnedAdapterConfig, backbone: BackboneConfig): ParameterSpec[] {
  return placesOf(config, backbone).flatMap((place) => {
    const keys = keysOf(place);
    const specs = [...bottleneckSpecs(keys, config.bottleneck, backbone.hiddenSize), ...rationalSpecs(keys.activation)];
    // σ(0): at first all forms count the same.
    const gate: ParameterSpec = {
      key: keys.gate,
      shape: [FORMS.length],
      init: { kind: "zeros" },
      group: "activation",
    };
    return place.forms.length > 1 ? [...specs, gate] : specs;
  });
}

/**
 * y + U f(D z), z being x where the adapter is parallel to its sub-layer and y where it follows it. In the search
 * every form is there with weight σ(gate / temperature); they share D, f and U.
 */
function adapt(context: BuildContext<LearnedAdapterConfig>, { forms, ...place }: Place, x: Value, y: Value): Value {
  const { config, parameter, derived } = context;
  const keys = keysOf(place);
  const { numerator, denominator } = rationalKeys(keys.activation);
  const made = () => rationalCoefficients(parameter(numerator), parameter(denominator));
  const coefficients = {
    matrix: derived(`${keys.activation}.matrix`, [2, 6], () => made().matrix),
    constants: derived(`${keys.activation}.constants`, [2, 1], () => made().constants),
  };
  const low = forms.map((form) => {
    const z = form === "parallel" ? x : y;
    return rational(gemm(z, parameter(keys.down), { transB: true }), coefficients); // [N, b]
  });
  const weights = () => sigmoid(mul(parameter(keys.gate), 1 / config.temperature)); // [forms]
  const gates = forms.length > 1 ? split(weights(), 0, [1, 1]) : [];
  const mixed = low.map((value, i) => (gates[i] ? mul(value, gates[i]) : value)).reduce((a, b) => add(a, b));
  return gemm(mixed, parameter(keys.up), { c: y, transB: true }); // [N, d]
}

export const learnedAdapter: Method<LearnedAdapterConfig> = {
  name: "learned-adapter",
  peftType: "LEARNED_ADAPTER",
  configSchema,
  properties: { routed: false, mergeable: false, startsAsIdentity: true, packable: true, causal: true },
  // With the default temperature the gates go ten times as fast: as architectures in DARTS (Liu et al. 2019).
  activationLr: 1e-4,

  newConfig(options, backbone) {
    const given = { peft_type: "LEARNED_ADAPTER", task_type: "CAUSAL_LM", ...options };
    const { placement } = parseWith(configSchema.partial({ adapters: true }), given, "learned-adapter");
    const places = BLOCKS.length * backbone.numLayers;
    const adapters = placement
      ? BLOCKS.flatMap((block) => placement[block]).filter((form) => form !== null).length
      : Math.round(places * KEPT_SHARE);
    const config = parseWith(configSchema, { adapters, ...given }, "learned-adapter");
    placesOf(config, backbone);
    return config;
  },

  parameters,

  countParameters(config, backbone) {
    const counts = {
      adapters: config.adapters * 2 * config.bottleneck * backbone.hiddenSize,
      activations: config.adapters * (geluNumerator.length + geluDenominator.length),
    };
    return { tunable: counts, activated: counts };
  },

  isIdentity(config, backbone, values) {
    return placesOf(config, backbone).every((place) => values(keysOf(place).up).every((v) => v === 0));
  },

  structure(config, backbone) {
    if (config.placement === null) return undefined;
    const places = placesOf(config, backbone);
    return new Map(places.map(({ layer, block, forms }) => [`model.layers.${layer}.${block}`, forms.join()]));
  },

  interim: (config) => config.placement === null,

  successor(config, backbone, { step, totalSteps, values }) {
    if (config.placement !== null || step < Math.ceil(config.search_ratio * totalSteps)) return undefined;
    return found(config, backbone, values);
  },

  build(context) {
    const { config, backbone } = context;
    const places = placesOf(config, backbone);
    return {
      hooks: {
        block(layer, block, x, y) {
          const place = places.find((one) => one.layer === layer && one.block === block);
          return place ? adapt(context, place, x, y) : y;
        },
      },
    };
  },
};
