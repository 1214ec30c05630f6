/**
 * @file Writes random-weight LLaMA models and LoRA adapters as GGUF files, so that llama.cpp can be timed on a shape
 * without downloading a checkpoint. Format: github.com/ggml-org/ggml, docs/gguf.md, version 3.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import { sitesOf } from "../../src/models/index.ts";
import { cached } from "./cache.ts";
import { RandomPool } from "./random-bytes.ts";
import { shapeOf } from "./shapes.ts";

const ALIGNMENT = 32;
const VALUE = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;
const TENSOR = { F32: 0, F16: 1, Q4_0: 2 } as const;
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

type TensorType = keyof typeof TENSOR;
type Scalar = { type: "uint32" | "int32" | "float32"; value: number } | { type: "bool"; value: boolean };
type Metadata =
  | Scalar
  | { type: "string"; value: string }
  | { type: "strings"; value: readonly string[] }
  | { type: "float32s" | "int32s"; value: readonly number[] };

interface TensorInfo {
  readonly name: string;
  /** Row-major, outermost first; the file stores the reverse. */
  readonly shape: readonly number[];
  readonly type: TensorType;
  /** Weights are uniform with this standard deviation; `ones` for norms, which are all 1. */
  readonly std: number | "ones";
}

class ByteWriter {
  readonly #parts: Buffer[] = [];
  length = 0;

  bytes(part: Buffer): this {
    this.#parts.push(part);
    this.length += part.length;
    return this;
  }
  uint32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    return this.bytes(part);
  }
  int32(value: number): this {
    return this.uint32(value >>> 0);
  }
  uint64(value: number): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    return this.bytes(part);
  }
  float32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeFloatLE(value);
    return this.bytes(part);
  }
  string(value: string): this {
    const part = Buffer.from(value);
    return this.uint64(part.length).bytes(part);
  }
  align(): this {
    return this.bytes(Buffer.alloc((ALIGNMENT - (this.length % ALIGNMENT)) % ALIGNMENT));
  }
  take(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

function writeMetadata(out: ByteWriter, key: string, entry: Metadata): void {
  out.string(key);
  switch (entry.type) {
    case "uint32":
      out.uint32(VALUE.uint32).uint32(entry.value);
      break;
    case "int32":
      out.uint32(VALUE.int32).int32(entry.value);
      break;
    case "float32":
      out.uint32(VALUE.float32).float32(entry.value);
      break;
    case "bool":
      out.uint32(VALUE.bool).bytes(Buffer.from([entry.value ? 1 : 0]));
      break;
    case "string":
      out.uint32(VALUE.string).string(entry.value);
      break;
    case "strings":
      out.uint32(VALUE.array).uint32(VALUE.string).uint64(entry.value.length);
      for (const value of entry.value) out.string(value);
      break;
    case "float32s":
      out.uint32(VALUE.array).uint32(VALUE.float32).uint64(entry.value.length);
      for (const value of entry.value) out.float32(value);
      break;
    case "int32s":
      out.uint32(VALUE.array).uint32(VALUE.int32).uint64(entry.value.length);
      for (const value of entry.value) out.int32(value);
      break;
  }
}

function sizeOf({ shape, type }: TensorInfo): number {
  const count = shape.reduce((product, size) => product * size, 1);
  if (type !== "Q4_0") return count * (type === "F32" ? 4 : 2);
  if ((shape.at(-1) ?? 0) % Q4_0.weights !== 0) throw new Error(`Q4_0 needs rows of a multiple of 32: [${shape}]`);
  return (count / Q4_0.weights) * Q4_0.bytes;
}

/** IEEE half precision of a positive normal number, rounded to nearest. */
function float16(value: number): number {
  const exponent = Math.floor(Math.log2(value));
  const mantissa = Math.round((value / 2 ** exponent - 1) * 1024);
  if (exponent < -14 || exponent > 14) throw new Error(`${value} is no normal float16`);
  return ((exponent + 15) << 10) + mantissa;
}

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

function writeGguf(path: string, metadata: Record<string, Metadata>, tensors: readonly TensorInfo[], seed: number) {
  const head = new ByteWriter();
  head.bytes(Buffer.from("GGUF")).uint32(3).uint64(tensors.length).uint64(Object.keys(metadata).length);
  for (const [key, entry] of Object.entries(metadata)) writeMetadata(head, key, entry);
  let offset = 0;
  for (const info of tensors) {
    head.string(info.name).uint32(info.shape.length);
    for (const size of [...info.shape].reverse()) head.uint64(size);
    head.uint32(TENSOR[info.type]).uint64(offset);
    offset += Math.ceil(sizeOf(info) / ALIGNMENT) * ALIGNMENT;
  }
  head.align();
  const file = openSync(path, "w");
  try {
    writeSync(file, head.take());
    const pool = new RandomPool(seed);
    for (const info of tensors) {
      const bytes = fill(info, pool);
      writeSync(file, bytes);
      writeSync(file, Buffer.alloc((ALIGNMENT - (bytes.length % ALIGNMENT)) % ALIGNMENT));
    }
  } finally {
    closeSync(file);
  }
}

/**
 * A SentencePiece-type vocabulary: `<unk>`, `<s>`, `</s>`, the 256 bytes, then made-up words. Nothing is tokenised in the
 * benchmarks; llama.cpp only insists that a vocabulary of the right size is there.
 */
function vocabulary(size: number): Record<string, Metadata> {
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
    "tokenizer.ggml.model": { type: "string", value: "llama" },
    "tokenizer.ggml.pre": { type: "string", value: "default" },
    "tokenizer.ggml.tokens": { type: "strings", value: tokens },
    "tokenizer.ggml.scores": { type: "float32s", value: tokens.map((_, i) => -i) },
    "tokenizer.ggml.token_type": { type: "int32s", value: types },
    "tokenizer.ggml.bos_token_id": { type: "uint32", value: 1 },
    "tokenizer.ggml.eos_token_id": { type: "uint32", value: 2 },
    "tokenizer.ggml.unknown_token_id": { type: "uint32", value: 0 },
    "tokenizer.ggml.add_bos_token": { type: "bool", value: false },
    "tokenizer.ggml.add_eos_token": { type: "bool", value: false },
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
    const metadata: Record<string, Metadata> = {
      "general.architecture": { type: "string", value: "llama" },
      "general.name": { type: "string", value: `${shape} with random weights` },
      "general.file_type": { type: "uint32", value: 2 },
      "llama.vocab_size": { type: "uint32", value: vocabSize },
      "llama.context_length": { type: "uint32", value: config.maxPositions },
      "llama.embedding_length": { type: "uint32", value: hiddenSize },
      "llama.block_count": { type: "uint32", value: config.numLayers },
      "llama.feed_forward_length": { type: "uint32", value: config.intermediateSize },
      "llama.attention.head_count": { type: "uint32", value: config.numHeads },
      "llama.attention.head_count_kv": { type: "uint32", value: config.numKvHeads },
      "llama.attention.layer_norm_rms_epsilon": { type: "float32", value: config.rmsNormEps },
      "llama.rope.dimension_count": { type: "uint32", value: config.headDim },
      "llama.rope.freq_base": { type: "float32", value: config.ropeTheta },
      ...vocabulary(vocabSize),
    };
    writeGguf(path, metadata, tensors, 1);
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
    const metadata: Record<string, Metadata> = {
      "general.architecture": { type: "string", value: "llama" },
      "general.type": { type: "string", value: "adapter" },
      "general.name": { type: "string", value: "random LoRA" },
      "adapter.type": { type: "string", value: "lora" },
      "adapter.lora.alpha": { type: "float32", value: rank },
    };
    writeGguf(path, metadata, tensors, 2);
  });
}
