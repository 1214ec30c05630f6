/** @file LoRA (Hu et al. 2021, arXiv 2106.09685) in PEFT's format: y' = y + scaling · (x Aᵀ) Bᵀ. */
import { gemm } from "../../graph/index.ts";
import type { BackboneConfig, Site } from "../../models/index.ts";
import type { LoweredModule, Method, ParameterSpec } from "../method.ts";
import { KEY_PREFIX, targetedSites } from "../peft.ts";
import { configSchema, type LoraConfig, newLoraConfig, rankOf, scalingOf } from "./config.ts";

export type { LoraConfig } from "./config.ts";

/** Keys and numbers of LoRA at one site, shared with the methods whose experts are LoRA modules. */
export function loraKeys(site: Site): { a: string; b: string } {
  const prefix = `${KEY_PREFIX}${site.path}`;
  return { a: `${prefix}.lora_A.weight`, b: `${prefix}.lora_B.weight` };
}

/** A [r, in] drawn as PEFT does, B [out, r] zero: a new adapter leaves the backbone as it is. */
export function loraSpecs(site: Site, r: number): ParameterSpec[] {
  const { a, b } = loraKeys(site);
  return [
    {
      key: a,
      shape: [r, site.inFeatures],
      init: { kind: "kaimingUniform", fanIn: site.inFeatures },
      group: "weights",
    },
    { key: b, shape: [site.outFeatures, r], init: { kind: "zeros" }, group: "weights" },
  ];
}

/** The product of a site for `Method.lower`. */
export function loraLow(
  site: Site,
  rank: number,
  scaling: number,
  values: (key: string) => Float32Array,
): NonNullable<LoweredModule["low"]> {
  const { a, b } = loraKeys(site);
  return { a: values(a), b: values(b), rank, scaling };
}

function parameters(config: LoraConfig, backbone: BackboneConfig): ParameterSpec[] {
  return targetedSites(config, backbone).flatMap((site) => {
    scalingOf(config, site); // an alpha_pattern that cannot be matched is refused here, not when it is used
    return loraSpecs(site, rankOf(config, site));
  });
}

export const lora: Method<LoraConfig> = {
  name: "lora",
  peftType: "LORA",
  configSchema,
  properties: { routed: false, mergeable: true, startsAsIdentity: true, packable: true, causal: true },

  claims: (config) => config.use_dora !== true,

  newConfig: (options, backbone) => newLoraConfig(options, backbone, false),

  parameters,

  countParameters(config, backbone) {
    const tunable = parameters(config, backbone).reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0);
    return { tunable: { lora: tunable }, activated: { lora: tunable } };
  },

  isIdentity(config, backbone, values) {
    return targetedSites(config, backbone).every((site) => values(loraKeys(site).b).every((v) => v === 0));
  },

  build({ config, backbone, parameter }) {
    const targeted = new Map(targetedSites(config, backbone).map((site) => [site.path, scalingOf(config, site)]));
    return {
      hooks: {
        linear(site, x, y) {
          const alpha = targeted.get(site.path);
          if (alpha === undefined) return y;
          const { a, b } = loraKeys(site);
          const low = gemm(x, parameter(a), { transB: true }); // [N, r]
          return gemm(low, parameter(b), { c: y, transB: true, alpha }); // [N, out]
        },
      },
    };
  },

  lower({ config, backbone, values }) {
    return targetedSites(config, backbone).map((site) => ({
      site,
      low: loraLow(site, rankOf(config, site), scalingOf(config, site), values),
    }));
  },

  lowRank(config, backbone) {
    return targetedSites(config, backbone).map((site) => ({
      site,
      ...loraKeys(site),
      scaling: scalingOf(config, site),
    }));
  },

  merge({ config, backbone, parameter }, _name, _weight, site) {
    const target = targetedSites(config, backbone).find(({ path }) => path === site?.path);
    if (target === undefined) return undefined;
    const { a, b } = loraKeys(target);
    return gemm(parameter(b), parameter(a), { alpha: scalingOf(config, target) }); // [out, in]
  },
};
