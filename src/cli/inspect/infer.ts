/** @file The sizes of the backbone that an adapter was made for, read off its own tensors and config. */
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson } from "../../base/index.ts";
import { type BackboneConfig, SafetensorsFile } from "../../models/index.ts";

type Shapes = ReadonlyMap<string, readonly number[]>;

const count = z.int().min(1).nullish();

/** What shapes alone do not tell. Whether the rest is right is checked when the adapter is loaded. */
const configSchema = z.looseObject({
  /** (IA)³: modules of which the inputs are scaled. */
  feedforward_modules: z.union([z.string(), z.array(z.string())]).nullish(),
  /** Prefixes: the layers that their one tensor is for, and its heads. */
  num_layers: count,
  num_attention_heads: count,
});

type AdapterFields = z.infer<typeof configSchema>;

/**
 * A LLaMA-like config into which the adapter in `directory` fits, so that it can be checked and shown without its
 * model. What it does not tell (vocabulary, constants, of vectors and prefixes most widths) is left at zero and plays
 * no part in an adapter. Throws `InputError` when it tells too little.
 */
export function inferBackbone(directory: string): BackboneConfig {
  const path = join(directory, "adapter_model.safetensors");
  const config = readJson(join(directory, "adapter_config.json"), configSchema);
  using file = SafetensorsFile.open(path);
  const shapes: Shapes = new Map([...file.entries].map(([key, { shape }]) => named(key, shape, config)));
  const heads = config.num_attention_heads ?? 1;
  const embeddings = dimension(shapes, "prompt_embeddings", 1);
  const layers = [...shapes.keys()].map((key) => Number(/\.layers\.(\d+)\./.exec(key)?.[1] ?? -1));
  const numLayers = embeddings === undefined ? Math.max(-1, ...layers) + 1 : (config.num_layers ?? 0);
  const prefix = embeddings === undefined ? dimension(shapes, ".projection.weight", 0) : embeddings / numLayers / 2;
  const outOf = (module: string) =>
    first(
      [".lora_B.weight", ".bias", ".bias_projection", ".delta", OUTPUT_SCALE].map((end) =>
        dimension(shapes, `.${module}${end}`, 0),
      ),
    );
  const intoOf = (module: string) =>
    first([
      ...[".lora_A.weight", ".delta"].map((end) => dimension(shapes, `.${module}${end}`, 1)),
      dimension(shapes, `.${module}${INPUT_SCALE}`, 0),
    ]);
  const hiddenSize =
    first(["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "qkv_proj", "gate_up_proj"].map(intoOf)) ??
    first(["o_proj", "down_proj"].map(outOf)) ??
    dimension(shapes, ".milora_router.gate.weight", 1) ??
    dimension(shapes, ".down.weight", 1); // of a bottleneck
  const queries = outOf("q_proj") ?? intoOf("o_proj") ?? hiddenSize;
  // Queries, keys and values, gate and up may be one module each.
  const [qkv, gateUp] = [outOf("qkv_proj"), outOf("gate_up_proj")];
  const jointKeys = qkv === undefined || queries === undefined ? undefined : (qkv - queries) / 2;
  const keys = prefix ?? outOf("k_proj") ?? outOf("v_proj") ?? jointKeys ?? queries;
  const half = gateUp === undefined ? undefined : gateUp / 2;
  const intermediateSize = first([outOf("gate_proj"), outOf("up_proj"), half, intoOf("down_proj")]) ?? hiddenSize;
  if (numLayers === 0 || (keys ?? intermediateSize) === undefined) {
    const problem = "its tensors do not tell the backbone's sizes; name the backbone with --model";
    throw new InputError("ADAPTER_INVALID", path, problem);
  }
  const isJoint = [...shapes.keys()].some((key) => /\.(qkv|gate_up)_proj\./.test(key));
  // Any common divisor: only the products show in an adapter. A prefix names its heads.
  const headDim = prefix === undefined ? greatestCommonDivisor(queries ?? 0, keys ?? 0) || 1 : prefix / heads;
  return {
    modelType: "llama",
    hiddenSize: hiddenSize ?? 0,
    intermediateSize: intermediateSize ?? 0,
    numLayers,
    numHeads: (queries ?? 0) / headDim,
    numKvHeads: (keys ?? 0) / headDim,
    headDim,
    vocabSize: dimension(shapes, ".embed_tokens.delta", 0) ?? 0,
    rmsNormEps: 0,
    ropeTheta: 0,
    maxPositions: Number.MAX_SAFE_INTEGER, // a prefix must leave some
    tieWordEmbeddings: dimension(shapes, ".lm_head.delta", 0) === undefined,
    hiddenAct: "silu",
    ...(isJoint && { fusedModules: true }),
    eosTokenIds: [],
  };
}

const OUTPUT_SCALE = ".ia3_output";
const INPUT_SCALE = ".ia3_input";

/**
 * A tensor's key and shape; AdaLoRA's matrices as LoRA's are called, the scales of (IA)³ by what they scale and with
 * that for their first axis.
 */
function named(
  key: string,
  shape: readonly number[],
  { feedforward_modules }: AdapterFields,
): [key: string, shape: readonly number[]] {
  const [, module, projected] = /^(.*)\.ia3_l(_projection)?$/.exec(key) ?? [];
  if (module === undefined) return [key.replace(/\.lora_[AB]$/, "$&.weight"), shape];
  if (projected === undefined) {
    return shape[1] === 1 ? [module + OUTPUT_SCALE, shape] : [module + INPUT_SCALE, shape.slice(1)];
  }
  if (typeof feedforward_modules === "string") return [key, shape]; // an expression: left to --model
  const input = (feedforward_modules ?? ["down_proj"]).some((name) => module.endsWith(name));
  return [module + (input ? INPUT_SCALE : OUTPUT_SCALE), shape];
}

function dimension(shapes: Shapes, ending: string, axis: number): number | undefined {
  for (const [key, shape] of shapes) if (key.endsWith(ending)) return shape[axis];
  return undefined;
}

function first(values: readonly (number | undefined)[]): number | undefined {
  return values.find((value) => value !== undefined);
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
