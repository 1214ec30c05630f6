/** @file P-tuning v2 (Liu et al. 2021, arXiv 2110.07602) in PEFT's format: keys and values before every layer's own. */
import { concat, gemm, reshape, split, type Value } from "../../graph/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { compute } from "../compute.ts";
import type { Method, ParameterSpec } from "../method.ts";
import { configSchema, hiddenOf, kvWidth, newPrefixConfig, type PrefixConfig, requireFit } from "./config.ts";

export type { PrefixConfig } from "./config.ts";

/** PEFT's only tensor, [tokens, layers · 2 · kvHeads · headDim]: for each layer its keys, then its values. */
const EMBEDDINGS = "prompt_embeddings";

/** What the prefix of a layer is made of while it is trained. */
function keysOf(layer: number): { key: string; value: string; projection: string } {
  const at = `prompt_encoder.layers.${layer}`;
  return { key: `${at}.key.weight`, value: `${at}.value.weight`, projection: `${at}.projection.weight` };
}

/** Keys and values of a layer, float32 [tokens, kvWidth] each. */
interface LayerPrefix {
  readonly key: Value;
  readonly value: Value;
}

/** From the vectors of size h: K = E_K Wᵀ, V = E_V Wᵀ with one matrix W [kvWidth, h] a layer. */
function projectedPrefix(layer: number, parameter: (key: string) => Value): LayerPrefix {
  const keys = keysOf(layer);
  const project = (name: string) => gemm(parameter(name), parameter(keys.projection), { transB: true });
  return { key: project(keys.key), value: project(keys.value) };
}

/** The whole prefix as PEFT saves it, float32 [tokens, layers · 2 · kvWidth]. */
function projectedEmbeddings(layers: number, parameter: (key: string) => Value): Value {
  const rows = Array.from({ length: layers }, (_, layer) => projectedPrefix(layer, parameter));
  return concat(
    rows.flatMap(({ key, value }) => [key, value]),
    1,
  );
}

function parameters(config: PrefixConfig, backbone: BackboneConfig): ParameterSpec[] {
  requireFit(config, backbone);
  const tokens = config.num_virtual_tokens;
  const width = kvWidth(backbone);
  const hidden = hiddenOf(config);
  const group = "weights";
  const normal = { kind: "normal", std: 1 } as const; // as PyTorch fills embeddings
  if (hidden === undefined) {
    return [{ key: EMBEDDINGS, shape: [tokens, backbone.numLayers * 2 * width], init: normal, group }];
  }
  return Array.from({ length: backbone.numLayers }, (_, layer): ParameterSpec[] => {
    const keys = keysOf(layer);
    return [
      { key: keys.key, shape: [tokens, hidden], init: normal, group },
      { key: keys.value, shape: [tokens, hidden], init: normal, group },
      { key: keys.projection, shape: [width, hidden], init: { kind: "kaimingUniform", fanIn: hidden }, group },
    ];
  }).flat();
}

export const pTuningV2: Method<PrefixConfig> = {
  name: "p-tuning-v2",
  peftType: "PREFIX_TUNING",
  configSchema,
  properties: { routed: false, mergeable: false, startsAsIdentity: false, packable: true, causal: true },

  newConfig: (options, backbone) => newPrefixConfig(options, backbone),

  parameters,

  countParameters(config, backbone) {
    const prefix = config.num_virtual_tokens * 2 * backbone.numLayers;
    const width = kvWidth(backbone);
    const hidden = hiddenOf(config);
    const counts: Record<string, number> =
      hidden === undefined
        ? { prefix: prefix * width }
        : { prefix: prefix * hidden, projections: backbone.numLayers * width * hidden };
    return { tunable: counts, activated: counts };
  },

  prefixLength: (config) => config.num_virtual_tokens,

  // Even a prefix of zeros takes its share of every softmax.
  isIdentity: () => false,

  lower: () => [], // the KV cache begins with the prefix

  build({ config, backbone, phase, parameter, derived }) {
    if (phase.kind === "decode") return { hooks: {} }; // the KV cache begins with the prefix
    const { numLayers } = backbone;
    const length = config.num_virtual_tokens;
    const width = kvWidth(backbone);
    const projected = hiddenOf(config) !== undefined;
    let rows: readonly Value[] | undefined; // row 2l are the keys of layer l, row 2l + 1 its values
    const row = (index: number): Value => {
      if (rows === undefined) {
        const shape = [length, numLayers * 2 * width];
        const embeddings = projected
          ? derived(EMBEDDINGS, shape, () => projectedEmbeddings(numLayers, parameter))
          : parameter(EMBEDDINGS);
        rows = split(embeddings, 1, new Array<number>(2 * numLayers).fill(width));
      }
      return reshape(rows[index]!, [1, length, width]);
    };
    return {
      hooks: { prefix: (layer) => ({ length, key: row(2 * layer), value: row(2 * layer + 1) }) },
    };
  },

  export(config, backbone, tensors) {
    if (config.inference_mode) return undefined;
    const projected = hiddenOf(config) !== undefined;
    const saved = compute(
      tensors,
      (parameter) =>
        new Map([[EMBEDDINGS, projected ? projectedEmbeddings(backbone.numLayers, parameter) : parameter(EMBEDDINGS)]]),
    );
    return { config: { ...config, inference_mode: true }, tensors: saved };
  },
};
