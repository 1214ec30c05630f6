/** @file DoRA (Liu et al. 2024, arXiv 2402.09353) in PEFT's format: y' = m / ‖W + sBA‖ · x (W + sBA)ᵀ. */
import {
  add,
  div,
  gemm,
  matmul,
  mul,
  reshape,
  sqrt,
  square,
  stopGradient,
  sub,
  sum,
  transpose,
  type Value,
} from "../../graph/index.ts";
import type { BackboneConfig, Site, SiteWeight } from "../../models/index.ts";
import { configSchema, type LoraConfig, newLoraConfig, rankOf, scalingOf } from "../lora/config.ts";
import { loraKeys, loraLow, loraSpecs } from "../lora/index.ts";
import type { BuildContext, LoweredModule, Method, ParameterSpec } from "../method.ts";
import { KEY_PREFIX, targetedSites } from "../peft.ts";

/** PEFT writes the magnitudes without `.weight`. */
export function magnitudeKey(site: Site): string {
  return `${KEY_PREFIX}${site.path}.lora_magnitude_vector`;
}

/** LoRA's matrices and the magnitudes [out], which start as the norms of W's rows: at first nothing changes. */
export function doraSpecs(site: Site, r: number): ParameterSpec[] {
  const init = { kind: "rowNorms", site } as const;
  return [...loraSpecs(site, r), { key: magnitudeKey(site), shape: [site.outFeatures], init, group: "weights" }];
}

const scaleName = (site: Site): string => `${site.path}.dora`;

/**
 * m / ‖W + sBA‖ per output row, float32 [out]; the norm is a constant in training (section 4.3 of the paper).
 * ‖W + sBA‖² = ‖W‖² + Σ_r B ∘ (2s·WAᵀ + s²·B(AAᵀ)): W is only multiplied with r rows, never copied or dequantised.
 */
function magnitudeScale(context: BuildContext<unknown>, site: Site, scaling: number, weight: SiteWeight): Value {
  return context.derived(scaleName(site), [site.outFeatures], () => {
    const [a, b] = [context.parameter(loraKeys(site).a), context.parameter(loraKeys(site).b)]; // [r, in], [out, r]
    const cross = mul(transpose(weight.project(a)), 2 * scaling); // [out, r]
    const own = mul(matmul(b, matmul(a, transpose(a))), scaling * scaling); // [out, r]
    const change = sum(mul(b, add(cross, own)), { axes: [1], keepDims: false }); // [out]
    const norm = stopGradient(sqrt(add(weight.squaredNorms(), change)));
    return div(context.parameter(magnitudeKey(site)), norm);
  });
}

/** What a DoRA module gives instead of y = x Wᵀ + b: float32 [N, out]. The bias is no part of what is scaled. */
export function doraOutput(
  context: BuildContext<unknown>,
  site: Site,
  scaling: number,
  x: Value,
  y: Value,
  weight: SiteWeight,
): Value {
  const { a, b } = loraKeys(site);
  const { bias } = weight;
  const low = gemm(x, context.parameter(a), { transB: true }); // [N, r]
  const c = bias ? sub(y, bias) : y;
  const changed = gemm(low, context.parameter(b), { c, transB: true, alpha: scaling }); // [N, out]
  const scaled = mul(changed, magnitudeScale(context, site, scaling, weight));
  return bias ? add(scaled, bias) : scaled;
}

/** The same for `Method.lower`. */
export function loweredDora(
  site: Site,
  low: NonNullable<LoweredModule["low"]>,
  derived: (name: string) => Float32Array,
): LoweredModule {
  return { site, low, scale: derived(scaleName(site)), keepsBias: true };
}

function parameters(config: LoraConfig, backbone: BackboneConfig): ParameterSpec[] {
  return targetedSites(config, backbone).flatMap((site) => {
    scalingOf(config, site); // as of LoRA: refused here, not when it is used
    return doraSpecs(site, rankOf(config, site));
  });
}

export const dora: Method<LoraConfig> = {
  name: "dora",
  peftType: "LORA",
  configSchema,
  properties: { routed: false, mergeable: true, startsAsIdentity: true, packable: true, causal: true },
  claims: (config) => config.use_dora === true,

  newConfig: (options, backbone) => newLoraConfig(options, backbone, true),

  parameters,

  countParameters(config, backbone) {
    const sites = targetedSites(config, backbone);
    const low = sites.reduce((total, s) => total + rankOf(config, s) * (s.inFeatures + s.outFeatures), 0);
    const counts = { lora: low, magnitudes: sites.reduce((total, s) => total + s.outFeatures, 0) };
    return { tunable: counts, activated: counts };
  },

  isIdentity(config, backbone, values) {
    return targetedSites(config, backbone).every((site) => values(loraKeys(site).b).every((v) => v === 0));
  },

  build(context) {
    const { config, backbone } = context;
    const targeted = new Map(targetedSites(config, backbone).map((site) => [site.path, scalingOf(config, site)]));
    return {
      hooks: {
        linear(site, x, y, weight) {
          const scaling = targeted.get(site.path);
          return scaling === undefined ? y : doraOutput(context, site, scaling, x, y, weight);
        },
      },
    };
  },

  lower({ config, backbone, values, derived }) {
    return targetedSites(config, backbone).map((site) =>
      loweredDora(site, loraLow(site, rankOf(config, site), scalingOf(config, site), values), derived),
    );
  },

  merge({ config, backbone, parameter }, _name, weight, site) {
    const target = targetedSites(config, backbone).find(({ path }) => path === site?.path);
    if (target === undefined) return undefined;
    const { a, b } = loraKeys(target);
    const direction = gemm(parameter(b), parameter(a), { c: weight, alpha: scalingOf(config, target) }); // [out, in]
    const norm = sqrt(sum(square(direction), { axes: [1], keepDims: true })); // [out, 1]
    const magnitude = reshape(parameter(magnitudeKey(target)), [target.outFeatures, 1]);
    return sub(mul(direction, div(magnitude, norm)), weight);
  },
};
