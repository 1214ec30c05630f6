/** @file (IA)³ (Liu et al. 2022, arXiv 2205.05638) in PEFT's format: activations scaled elementwise, y' = l ∘ y. */
import { add, gemm, mul, reshape, sub, type Value } from "../../graph/index.ts";
import type { BackboneConfig, Site } from "../../models/index.ts";
import { compute } from "../compute.ts";
import type { Method, ParameterSpec } from "../method.ts";
import { KEY_PREFIX } from "../peft.ts";
import { configSchema, type Ia3Config, newIa3Config, projectionOf, type ScaledSite, scaledSites } from "./config.ts";

export type { Ia3Config } from "./config.ts";

/** Keys of a site: the scale, or what it is made of while it is trained. */
function keysOf({ site }: ScaledSite): { scale: string; vector: string; projection: string } {
  const scale = `${KEY_PREFIX}${site.path}.ia3_l`;
  return { scale, vector: `${scale}_vector`, projection: `${scale}_projection` };
}

const scaleName = (site: Site): string => `${site.path}.ia3`;

/** How many numbers a site's scale has. */
function widthOf({ site, feedforward }: ScaledSite): number {
  return feedforward ? site.inFeatures : site.outFeatures;
}

/** PEFT keeps the scale of an output as a column, that of an input as a row. */
function shapeOf(scaled: ScaledSite): [number, number] {
  return scaled.feedforward ? [1, widthOf(scaled)] : [widthOf(scaled), 1];
}

function specsOf(scaled: ScaledSite, config: Ia3Config): ParameterSpec[] {
  const keys = keysOf(scaled);
  const n = widthOf(scaled);
  const dim = projectionOf(config);
  const group = "weights";
  if (dim === undefined) {
    const ones = new Array<number>(n).fill(1);
    return [{ key: keys.scale, shape: shapeOf(scaled), init: { kind: "values", values: ones }, group }];
  }
  return [
    { key: keys.vector, shape: [1, dim], init: { kind: "normal", std: 1 }, group },
    { key: keys.projection, shape: [n, dim], init: { kind: "zeros" }, group },
  ];
}

/** l = 1 + v Pᵀ, float32 [1, n], from vector v [1, dim] and projection P [n, dim]. */
function projectedScale(scaled: ScaledSite, parameter: (key: string) => Value): Value {
  const keys = keysOf(scaled);
  return add(gemm(parameter(keys.vector), parameter(keys.projection), { transB: true }), 1);
}

/** The scale of a site in whatever form it is kept, float32 [n]. */
function scaleOf(scaled: ScaledSite, config: Ia3Config, parameter: (key: string) => Value): Value {
  const projected = projectionOf(config) !== undefined;
  const scale = projected ? projectedScale(scaled, parameter) : parameter(keysOf(scaled).scale);
  return reshape(scale, [widthOf(scaled)]);
}

function parameters(config: Ia3Config, backbone: BackboneConfig): ParameterSpec[] {
  return scaledSites(config, backbone).flatMap((scaled) => specsOf(scaled, config));
}

export const ia3: Method<Ia3Config> = {
  name: "ia3",
  peftType: "IA3",
  configSchema,
  properties: { routed: false, mergeable: true, startsAsIdentity: true, packable: true, causal: true },

  newConfig: (options, backbone) => newIa3Config(options, backbone),

  parameters,

  countParameters(config, backbone) {
    const dim = projectionOf(config);
    const sites = scaledSites(config, backbone);
    const widths = sites.reduce((total, scaled) => total + widthOf(scaled), 0);
    const counts: Record<string, number> =
      dim === undefined ? { scales: widths } : { vectors: sites.length * dim, projections: widths * dim };
    return { tunable: counts, activated: counts };
  },

  isIdentity(config, backbone, values) {
    const projected = projectionOf(config) !== undefined;
    return scaledSites(config, backbone).every((scaled) => {
      const { scale, vector, projection } = keysOf(scaled);
      if (!projected) return values(scale).every((v) => v === 1);
      return values(vector).every((v) => v === 0) || values(projection).every((v) => v === 0);
    });
  },

  build({ config, backbone, parameter, derived }) {
    const sites = new Map(scaledSites(config, backbone).map((scaled) => [scaled.site.path, scaled]));
    const projected = projectionOf(config) !== undefined;
    return {
      hooks: {
        linear(site, x, y, weight) {
          const scaled = sites.get(site.path);
          if (scaled === undefined) return y;
          const make = () => scaleOf(scaled, config, parameter);
          const scale = projected ? derived(scaleName(site), [widthOf(scaled)], make) : make(); // [n]
          if (!scaled.feedforward) return mul(y, scale); // [N, out], the bias with it
          const product = weight.project(mul(x, scale));
          return weight.bias ? add(product, weight.bias) : product;
        },
      },
    };
  },

  lower({ config, backbone, values, derived }) {
    const projected = projectionOf(config) !== undefined;
    return scaledSites(config, backbone).map((scaled) => {
      const { site, feedforward } = scaled;
      const scale = projected ? derived(scaleName(site)) : values(keysOf(scaled).scale);
      return feedforward ? { site, inputScale: scale } : { site, scale };
    });
  },

  merge({ config, backbone, parameter }, name, weight) {
    const scaled = scaledSites(config, backbone).find(({ site }) => name.startsWith(`${site.path}.`));
    if (scaled === undefined) return undefined;
    if (name.endsWith(".bias")) {
      return scaled.feedforward ? undefined : mul(weight, sub(scaleOf(scaled, config, parameter), 1)); // [out]
    }
    // l as a column scales W's rows, the outputs; as a row its columns, the inputs.
    return mul(weight, sub(reshape(scaleOf(scaled, config, parameter), shapeOf(scaled)), 1)); // [out, in]
  },

  export(config, backbone, tensors) {
    if (projectionOf(config) === undefined) return undefined;
    const { projection_dim: _, ...rest } = config;
    const scales = compute(
      tensors,
      (parameter) =>
        new Map(
          scaledSites(config, backbone).map((scaled) => {
            const scale = scaleOf(scaled, config, parameter);
            return [keysOf(scaled).scale, reshape(scale, shapeOf(scaled))];
          }),
        ),
    );
    return { config: { ...rest, inference_mode: true }, tensors: scales };
  },
};
