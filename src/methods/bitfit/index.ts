/** @file BitFit (Ben-Zaken et al. 2021, arXiv 2106.10199) on a backbone without biases: y' = y + b at linear modules. */
import { add, gemm, reshape, type Value } from "../../graph/index.ts";
import type { BackboneConfig, Site } from "../../models/index.ts";
import { compute } from "../compute.ts";
import type { Method, ParameterSpec } from "../method.ts";
import { KEY_PREFIX, targetedSites } from "../peft.ts";
import { type BitfitConfig, configSchema, newBitfitConfig, projectionOf } from "./config.ts";

export type { BitfitConfig } from "./config.ts";

export function biasKey(site: Site): string {
  return `${KEY_PREFIX}${site.path}.bias`;
}

/** Keys of a module: its bias, or what that is made of while it is trained. */
function keysOf(site: Site): { bias: string; vector: string; projection: string } {
  const bias = biasKey(site);
  return { bias, vector: `${bias}_vector`, projection: `${bias}_projection` };
}

const biasName = (site: Site): string => `${site.path}.bias`;

function specsOf(site: Site, dim: number | undefined): ParameterSpec[] {
  const { bias, vector, projection } = keysOf(site);
  const group = "weights";
  if (dim === undefined) return [{ key: bias, shape: [site.outFeatures], init: { kind: "zeros" }, group }];
  return [
    { key: vector, shape: [1, dim], init: { kind: "normal", std: 1 }, group },
    { key: projection, shape: [site.outFeatures, dim], init: { kind: "zeros" }, group },
  ];
}

/** b = v Pᵀ, float32 [out], from vector v [1, dim] and projection P [out, dim]. */
function projected(site: Site, parameter: (key: string) => Value): Value {
  const { vector, projection } = keysOf(site);
  return reshape(gemm(parameter(vector), parameter(projection), { transB: true }), [site.outFeatures]);
}

function parameters(config: BitfitConfig, backbone: BackboneConfig): ParameterSpec[] {
  return targetedSites(config, backbone).flatMap((site) => specsOf(site, projectionOf(config)));
}

export const bitfit: Method<BitfitConfig> = {
  name: "bitfit",
  peftType: "BITFIT",
  configSchema,
  // A bias is no change of a weight, and the checkpoint has no place for it.
  properties: { routed: false, mergeable: false, startsAsIdentity: true, packable: true, causal: true },

  newConfig: (options, backbone) => newBitfitConfig(options, backbone),

  parameters,

  countParameters(config, backbone) {
    const dim = projectionOf(config);
    const sites = targetedSites(config, backbone);
    const width = sites.reduce((total, { outFeatures }) => total + outFeatures, 0);
    const counts: Record<string, number> =
      dim === undefined ? { biases: width } : { vectors: sites.length * dim, projections: width * dim };
    return { tunable: counts, activated: counts };
  },

  isIdentity(config, backbone, values) {
    const zero = (key: string) => values(key).every((v) => v === 0);
    return targetedSites(config, backbone).every((site) => {
      const { bias, vector, projection } = keysOf(site);
      return projectionOf(config) === undefined ? zero(bias) : zero(vector) || zero(projection);
    });
  },

  build({ config, backbone, parameter, derived }) {
    const targeted = new Set(targetedSites(config, backbone).map(({ path }) => path));
    const isProjected = projectionOf(config) !== undefined;
    return {
      hooks: {
        linear(site, _x, y) {
          if (!targeted.has(site.path)) return y;
          const bias = isProjected
            ? derived(biasName(site), [site.outFeatures], () => projected(site, parameter))
            : parameter(keysOf(site).bias);
          return add(y, bias); // [N, out]
        },
      },
    };
  },

  lower({ config, backbone, values, derived }) {
    const isProjected = projectionOf(config) !== undefined;
    return targetedSites(config, backbone).map((site) => ({
      site,
      bias: isProjected ? derived(biasName(site)) : values(keysOf(site).bias),
    }));
  },

  export(config, backbone, tensors) {
    if (config.inference_mode) return undefined;
    const { projection_dim: _, ...rest } = config;
    if (projectionOf(config) === undefined) return undefined;
    const sites = targetedSites(config, backbone);
    const biases = compute(
      tensors,
      (parameter) => new Map(sites.map((site) => [keysOf(site).bias, projected(site, parameter)])),
    );
    return { config: { ...rest, inference_mode: true }, tensors: biases };
  },
};
