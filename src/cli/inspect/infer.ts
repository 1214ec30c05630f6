/** @file The sizes of the backbone that an adapter was made for, read off its own tensors. */
import { join } from "node:path";
import { InputError } from "../../base/index.ts";
import { type BackboneConfig, SafetensorsFile } from "../../models/index.ts";

type Shapes = ReadonlyMap<string, readonly number[]>;

/**
 * A LLaMA-like config into which the adapter in `directory` fits, so that it can be checked and shown without its
 * model. What its tensors do not tell (vocabulary, constants) is left at zero and plays no part in an adapter.
 */
export function inferBackbone(directory: string): BackboneConfig {
  const path = join(directory, "adapter_model.safetensors");
  using file = SafetensorsFile.open(path);
  const named = (key: string) => key.replace(/\.lora_[AB]$/, "$&.weight"); // as AdaLoRA writes them
  const shapes: Shapes = new Map([...file.entries].map(([key, entry]) => [named(key), entry.shape]));
  const layers = [...shapes.keys()].map((key) => Number(/\.layers\.(\d+)\./.exec(key)?.[1] ?? -1));
  const numLayers = Math.max(-1, ...layers) + 1;
  const outOf = (module: string) =>
    first([".lora_B.weight", ".bias", ".bias_projection", ".delta"].map((end) => dimension(shapes, module + end, 0)));
  const intoOf = (module: string) =>
    first([".lora_A.weight", ".delta"].map((end) => dimension(shapes, module + end, 1)));
  const hiddenSize =
    first(["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].map(intoOf)) ??
    first(["o_proj", "down_proj"].map(outOf)) ??
    dimension(shapes, ".milora_router.gate.weight", 1) ??
    dimension(shapes, ".down.weight", 1); // of a bottleneck
  if (numLayers === 0 || hiddenSize === undefined) {
    const problem = "its tensors do not tell the backbone's sizes; name the backbone with --model";
    throw new InputError("ADAPTER_INVALID", path, problem);
  }
  const queries = outOf("q_proj") ?? intoOf("o_proj") ?? hiddenSize;
  const keys = outOf("k_proj") ?? outOf("v_proj") ?? queries;
  const headDim = greatestCommonDivisor(queries, keys); // any common divisor: only the products show in an adapter
  return {
    modelType: "llama",
    hiddenSize,
    intermediateSize: first([outOf("gate_proj"), outOf("up_proj"), intoOf("down_proj")]) ?? hiddenSize,
    numLayers,
    numHeads: queries / headDim,
    numKvHeads: keys / headDim,
    headDim,
    vocabSize: dimension(shapes, ".embed_tokens.delta", 0) ?? 0,
    rmsNormEps: 0,
    ropeTheta: 0,
    maxPositions: 0,
    tieWordEmbeddings: dimension(shapes, ".lm_head.delta", 0) === undefined,
    hiddenAct: "silu",
    eosTokenIds: [],
  };
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
