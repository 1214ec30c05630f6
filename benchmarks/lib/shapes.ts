/** @file The shapes of LLaMA-like models that the benchmarks fill with random weights. */

export interface Shape {
  readonly name: string;
  readonly hidden: number;
  readonly ffn: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly vocab: number;
  /** The language-model head shares the embedding matrix. */
  readonly tied: boolean;
  readonly ropeTheta: number;
  readonly maxPositions: number;
}

export const SHAPES: Readonly<Record<string, Shape>> = {
  tiny: {
    name: "tiny",
    hidden: 64,
    ffn: 192,
    layers: 2,
    heads: 4,
    kvHeads: 2,
    vocab: 512,
    tied: true,
    ropeTheta: 10000,
    maxPositions: 2048,
  },
  "smollm2-135m": {
    name: "smollm2-135m",
    hidden: 576,
    ffn: 1536,
    layers: 30,
    heads: 9,
    kvHeads: 3,
    vocab: 49152,
    tied: true,
    ropeTheta: 100000,
    maxPositions: 8192,
  },
  "tinyllama-1.1b": {
    name: "tinyllama-1.1b",
    hidden: 2048,
    ffn: 5632,
    layers: 22,
    heads: 32,
    kvHeads: 4,
    vocab: 32000,
    tied: false,
    ropeTheta: 10000,
    maxPositions: 2048,
  },
};

export function shapeOf(name: string): Shape {
  const shape = SHAPES[name];
  if (!shape) throw new Error(`no shape "${name}"; there are ${Object.keys(SHAPES).join(", ")}`);
  return shape;
}

export interface Linear {
  /** Module name as in the checkpoint, e.g. `q_proj`. */
  readonly module: string;
  /** Path below `model.layers.N.` in a transformers checkpoint. */
  readonly path: string;
  /** Name below `blk.N.` in a GGUF file. */
  readonly gguf: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** The seven linear modules of one decoder layer. */
export function linears(shape: Shape): readonly Linear[] {
  const { hidden: d, ffn } = shape;
  const kv = (d / shape.heads) * shape.kvHeads;
  const linear = (block: string, module: string, gguf: string, inFeatures: number, outFeatures: number): Linear => ({
    module,
    path: `${block}.${module}`,
    gguf,
    inFeatures,
    outFeatures,
  });
  return [
    linear("self_attn", "q_proj", "attn_q", d, d),
    linear("self_attn", "k_proj", "attn_k", d, kv),
    linear("self_attn", "v_proj", "attn_v", d, kv),
    linear("self_attn", "o_proj", "attn_output", d, d),
    linear("mlp", "gate_proj", "ffn_gate", d, ffn),
    linear("mlp", "up_proj", "ffn_up", d, ffn),
    linear("mlp", "down_proj", "ffn_down", ffn, d),
  ];
}

/** Weights of the model, the embedding counted once. */
export function weightCount(shape: Shape): number {
  const perLayer = linears(shape).reduce((sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures, 0);
  const tables = shape.vocab * shape.hidden * (shape.tied ? 1 : 2);
  return shape.layers * (perLayer + 2 * shape.hidden) + tables + shape.hidden;
}
