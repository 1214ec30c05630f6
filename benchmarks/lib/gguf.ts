/**
 * @file Writes random-weight LLaMA models and LoRA adapters as GGUF files, so that llama.cpp can be timed on a shape
 * without downloading a checkpoint. Format: github.com/ggml-org/ggml, docs/gguf.md, version 3.
 */
import { float32ToFloat16 } from "../../src/base/index.ts";
import { type GgufTensorToWrite, type GgufValue, sitesOf, writeGguf } from "../../src/models/index.ts";
import { cached } from "./cache.ts";
import { RandomPool } from "./random-bytes.ts";
import { shapeOf } from "./shapes.ts";

/** A Q4_0 block: one float16 scale, then 32 weights of 4 bits; weight = scale · (nibble − 8). */
const Q4_0 = { weights: 32, bytes: 18 } as const;

/** Names of the seven linear modules in a GGUF file. */
const MODULES: Readonly<Record<string, string>> = {
  q_proj: "attn_q",
  k_proj: "attn_k",
  v_proj: "attn_v",
  o_proj: "attn_output",
  gate_proj: "ffn_gate",
  up_proj: "ffn_up",
  down_proj: "ffn_down",
};

type Metadata = Record<string, GgufValue>;

interface TensorInfo {
  readonly name: string;
  /** Outermost first. */
  readonly shape: readonly number[];
  readonly type: "F32" | "F16" | "Q4_0";
  /** Weights are uniform with this standard deviation; `ones` for norms, which are all 1. */
  readonly std: number | "ones";
}

function sizeOf({ shape, type }: TensorInfo): number {
  const count = shape.reduce((product, size) => product * size, 1);
  if (type !== "Q4_0") return count * (type === "F32" ? 4 : 2);
  return (count / Q4_0.weights) * Q4_0.bytes;
}

const float16 = (value: number): number => float32ToFloat16(Float32Array.of(value))[0]!;

function fill(info: TensorInfo, pool: RandomPool): Uint8Array {
  const bytes = new Uint8Array(sizeOf(info));
  if (info.std === "ones") {
    new Float32Array(bytes.buffer).fill(1);
    return bytes;
  }
  if (info.type === "F32") {
    pool.fillFloats(new Float32Array(bytes.buffer), info.std * Math.sqrt(3));
    return bytes;
  }
  pool.fillBytes(bytes);
  if (info.type === "F16") {
    // Random sign and mantissa below a fixed exponent: magnitudes in [std, 2·std).
    const top = float16(info.std) & 0x7c00;
    const halves = new Uint16Array(bytes.buffer);
    for (let i = 0; i < halves.length; i++) halves[i] = ((halves[i] as number) & 0x83ff) | top;
    return bytes;
  }
  const scale = float16(info.std / 4.61); // nibbles − 8 are uniform on −8 … 7: standard deviation 4.61
  for (let at = 0; at < bytes.length; at += Q4_0.bytes) {
    bytes[at] = scale & 0xff;
    bytes[at + 1] = scale >> 8;
  }
  return bytes;
}

function write(path: string, metadata: Metadata, tensors: readonly TensorInfo[], seed: number): void {
  const pool = new RandomPool(seed);
  const random = tensors.map((info): GgufTensorToWrite => {
    const { name, shape, type } = info;
    return { name, shape, type, bytes: () => fill(info, pool) };
  });
  writeGguf(path, new Map(Object.entries(metadata)), random);
}

/**
 * A SentencePiece-type vocabulary: `<unk>`, `<s>`, `</s>`, the 256 bytes, then made-up words. Nothing is tokenised in the
 * benchmarks; llama.cpp only insists that a vocabulary of the right size is there.
 */
function vocabulary(size: number): Metadata {
  const TYPE = { normal: 1, unknown: 2, control: 3, byte: 6 };
  const tokens = ["<unk>", "<s>", "</s>"];
  const types = [TYPE.unknown, TYPE.control, TYPE.control];
  for (let byte = 0; byte < 256; byte++) {
    tokens.push(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
    types.push(TYPE.byte);
  }
  for (let i = tokens.length; i < size; i++) {
    tokens.push(`\u2581w${i}`);
    types.push(TYPE.normal);
  }
  return {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.scores": Float32Array.from(tokens, (_, i) => -i),
    "tokenizer.ggml.token_type": Int32Array.from(types),
    "tokenizer.ggml.bos_token_id": { uint32: 1 },
    "tokenizer.ggml.eos_token_id": { uint32: 2 },
    "tokenizer.ggml.unknown_token_id": { uint32: 0 },
    "tokenizer.ggml.add_bos_token": false,
    "tokenizer.ggml.add_eos_token": false,
  };
}

/**
 * Path of a model of this shape whose matrices are all Q4_0, the head and the embedding too (what
 * `llama-quantize --pure` makes), norms float32.
 */
export function ggufModel(shape: string): string {
  const config = shapeOf(shape);
  return cached(`${shape}-q4_0.gguf`, (path) => {
    const { hiddenSize, vocabSize } = config;
    const table = { shape: [vocabSize, hiddenSize], type: "Q4_0", std: 0.02 } as const;
    const norm = { shape: [hiddenSize], type: "F32", std: "ones" } as const;
    const tensors: TensorInfo[] = [{ name: "token_embd.weight", ...table }];
    for (let layer = 0; layer < config.numLayers; layer++) {
      tensors.push(
        { name: `blk.${layer}.attn_norm.weight`, ...norm },
        { name: `blk.${layer}.ffn_norm.weight`, ...norm },
      );
    }
    for (const { layer, module, inFeatures, outFeatures } of sitesOf(config)) {
      const name = `blk.${layer}.${MODULES[module]}.weight`;
      tensors.push({ name, shape: [outFeatures, inFeatures], type: "Q4_0", std: 1 / Math.sqrt(inFeatures) });
    }
    tensors.push({ name: "output_norm.weight", ...norm });
    if (!config.tieWordEmbeddings) tensors.push({ name: "output.weight", ...table });
    const metadata: Metadata = {
      "general.architecture": "llama",
      "general.name": `${shape} with random weights`,
      "general.file_type": { uint32: 2 },
      "llama.vocab_size": { uint32: vocabSize },
      "llama.context_length": { uint32: config.maxPositions },
      "llama.embedding_length": { uint32: hiddenSize },
      "llama.block_count": { uint32: config.numLayers },
      "llama.feed_forward_length": { uint32: config.intermediateSize },
      "llama.attention.head_count": { uint32: config.numHeads },
      "llama.attention.head_count_kv": { uint32: config.numKvHeads },
      "llama.attention.layer_norm_rms_epsilon": { float32: config.rmsNormEps },
      "llama.rope.dimension_count": { uint32: config.headDim },
      "llama.rope.freq_base": { float32: config.ropeTheta },
      ...vocabulary(vocabSize),
    };
    write(path, metadata, tensors, 1);
  });
}

/** Path of a LoRA adapter on all seven linear modules of every layer, alpha = rank. */
export function ggufLora(shape: string, rank: number, type: "F32" | "F16" = "F32"): string {
  return cached(`${shape}-lora-r${rank}-${type.toLowerCase()}.gguf`, (path) => {
    const tensors = sitesOf(shapeOf(shape)).flatMap(({ layer, module, inFeatures, outFeatures }): TensorInfo[] => {
      const name = `blk.${layer}.${MODULES[module]}.weight`;
      return [
        { name: `${name}.lora_a`, shape: [rank, inFeatures], type, std: 1 / Math.sqrt(inFeatures) },
        { name: `${name}.lora_b`, shape: [outFeatures, rank], type, std: 0.01 },
      ];
    });
    const metadata: Metadata = {
      "general.architecture": "llama",
      "general.type": "adapter",
      "general.name": "random LoRA",
      "adapter.type": "lora",
      "adapter.lora.alpha": { float32: rank },
    };
    write(path, metadata, tensors, 2);
  });
}
