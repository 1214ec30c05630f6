/** @file AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) in PEFT's format: y' = y + s · (x Aᵀ ∘ e) Bᵀ, rows of small importance pruned. */
import {
  add,
  type Graph,
  gemm,
  matmul,
  maximum,
  mul,
  reshape,
  sqrt,
  square,
  sub,
  sum,
  type Value,
} from "../../graph/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { Tensor } from "../../runtime/index.ts";
import type { ExportedAdapter, Method, ParameterSpec } from "../method.ts";
import { AdaloraTraining } from "./allocation.ts";
import {
  type AdaloraConfig,
  adaloraKeys,
  configSchema,
  newAdaloraConfig,
  patternKey,
  type RankedSite,
  rankedSites,
  scalingOf,
} from "./config.ts";

export type { AdaloraConfig } from "./config.ts";

/** As in PEFT: A [r, in] and B [out, r] small, the "singular values" E [r, 1] zero. */
function specsOf({ site, rank }: RankedSite): ParameterSpec[] {
  const { a, b, e } = adaloraKeys(site);
  const normal = { kind: "normal", std: 0.02 } as const;
  return [
    { key: a, shape: [rank, site.inFeatures], init: normal, group: "weights" },
    { key: b, shape: [site.outFeatures, rank], init: normal, group: "weights" },
    { key: e, shape: [rank, 1], init: { kind: "zeros" }, group: "weights" },
  ];
}

function parameters(config: AdaloraConfig, backbone: BackboneConfig): ParameterSpec[] {
  return rankedSites(config, backbone).flatMap(specsOf);
}

/**
 * How far the rows of A and the columns of B are from orthonormal (eq. 4): the mean over all matrices of ‖AAᵀ − I‖ and
 * ‖BᵀB − I‖ (Frobenius, not squared, as in PEFT).
 */
function orthogonality(graph: Graph, sites: readonly RankedSite[], parameter: (key: string) => Value): Value {
  const distances = sites.flatMap(({ site, rank }) => {
    if (rank === 0) return [];
    const [a, b] = [parameter(adaloraKeys(site).a), parameter(adaloraKeys(site).b)];
    const identity = new Float32Array(rank * rank);
    for (let i = 0; i < rank; i++) identity[i * rank + i] = 1;
    const eye = graph.constant("float32", [rank, rank], identity);
    return [gemm(a, a, { transB: true }), gemm(b, b, { transA: true })].map(
      (gram) => sqrt(maximum(sum(square(sub(gram, eye))), 1e-30)), // the root has no slope at 0
    );
  });
  return mul(
    distances.reduce((x, y) => add(x, y)),
    1 / (2 * sites.length),
  );
}

/** Rows `kept` of a matrix [rows, columns]. */
function keepRows(source: Float32Array, columns: number, kept: readonly number[]): Tensor {
  const values = new Float32Array(kept.length * columns);
  for (const [to, from] of kept.entries()) {
    values.set(source.subarray(from * columns, (from + 1) * columns), to * columns);
  }
  return Tensor.from("float32", [kept.length, columns], values);
}

/** Columns `kept` of a matrix [rows, columns]. */
function keepColumns(source: Float32Array, rows: number, columns: number, kept: readonly number[]): Tensor {
  const values = new Float32Array(rows * kept.length);
  for (let row = 0; row < rows; row++) {
    for (const [to, from] of kept.entries()) values[row * kept.length + to] = source[row * columns + from]!;
  }
  return Tensor.from("float32", [rows, kept.length], values);
}

/** Drops the rows whose E is 0, which add nothing: the function stays exactly the same. */
function prune(
  config: AdaloraConfig,
  backbone: BackboneConfig,
  tensors: ReadonlyMap<string, Tensor>,
): ExportedAdapter<AdaloraConfig> {
  const pattern: Record<string, boolean[]> = {};
  const pruned = new Map<string, Tensor>();
  const read = (key: string) => tensors.get(key)!.data as Float32Array;
  for (const { site, rank } of rankedSites(config, backbone)) {
    const { a, b, e } = adaloraKeys(site);
    const keep = Array.from(read(e), (value) => value !== 0);
    const kept = keep.flatMap((yes, row) => (yes ? [row] : []));
    pattern[patternKey(site)] = keep;
    pruned.set(a, keepRows(read(a), site.inFeatures, kept));
    pruned.set(b, keepColumns(read(b), site.outFeatures, rank, kept));
    pruned.set(e, keepRows(read(e), 1, kept));
  }
  const saved = configSchema.parse({ ...config, rank_pattern: pattern, inference_mode: true }); // keys in its order
  return { config: saved, tensors: pruned };
}

export const adalora: Method<AdaloraConfig> = {
  name: "adalora",
  peftType: "ADALORA",
  configSchema,
  properties: { routed: false, mergeable: true, startsAsIdentity: true, packable: true, causal: true },

  newConfig: newAdaloraConfig,

  parameters,

  countParameters(config, backbone) {
    const sites = rankedSites(config, backbone);
    // While it is trained only the mean of the ranks at the end is known.
    const rankOf = ({ rank }: RankedSite) => (config.inference_mode ? rank : config.target_r);
    const matrices = sites.reduce((n, s) => n + rankOf(s) * (s.site.inFeatures + s.site.outFeatures), 0);
    const counts = { lora: matrices, singular_values: sites.reduce((n, s) => n + rankOf(s), 0) };
    return { tunable: counts, activated: counts };
  },

  isIdentity(config, backbone, values) {
    const zero = (key: string) => values(key).every((v) => v === 0);
    return rankedSites(config, backbone).every(({ site }) => {
      const { a, b, e } = adaloraKeys(site);
      return zero(e) || zero(a) || zero(b);
    });
  },

  structure(config, backbone) {
    if (!config.rank_pattern) return undefined;
    return new Map(rankedSites(config, backbone).map(({ site, rank }) => [site.path, `r ${rank}`]));
  },

  build({ graph, config, backbone, phase, parameter }) {
    const sites = rankedSites(config, backbone);
    const ranks = new Map(sites.map(({ site, rank }) => [site.path, rank]));
    const alpha = scalingOf(config);
    return {
      hooks: {
        linear(site, x, y) {
          const rank = ranks.get(site.path);
          if (!rank) return y;
          const { a, b, e } = adaloraKeys(site);
          const low = mul(gemm(x, parameter(a), { transB: true }), reshape(parameter(e), [rank])); // [N, r]
          return gemm(low, parameter(b), { c: y, transB: true, alpha }); // [N, out]
        },
      },
      losses() {
        const none = config.orth_reg_weight === 0 || sites.every(({ rank }) => rank === 0);
        if (phase.kind !== "train" || none) return new Map();
        return new Map([["orthogonality", mul(orthogonality(graph, sites, parameter), config.orth_reg_weight)]]);
      },
    };
  },

  lower({ config, backbone, values }) {
    return rankedSites(config, backbone).flatMap(({ site, rank }) => {
      if (!rank) return [];
      const { a, b, e } = adaloraKeys(site);
      return [{ site, low: { a: values(a), b: values(b), rank, scaling: scalingOf(config), ranks: values(e) } }];
    });
  },

  merge({ config, backbone, parameter }, _name, _weight, site) {
    const found = rankedSites(config, backbone).find((candidate) => candidate.site.path === site?.path);
    if (!found?.rank) return undefined;
    const { a, b, e } = adaloraKeys(found.site);
    return mul(matmul(parameter(b), mul(parameter(a), parameter(e))), scalingOf(config)); // [out, in]
  },

  export: (config, backbone, tensors) => (config.inference_mode ? undefined : prune(config, backbone, tensors)),

  trainingState: (context) => new AdaloraTraining(context),
};
