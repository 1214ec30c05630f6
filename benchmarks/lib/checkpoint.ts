/** @file A checkpoint with random bfloat16 weights, without a tokenizer: to see what loading costs. */
import { closeSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { float32ToBfloat16 } from "../../src/base/index.ts";
import { type BackboneConfig, parametersOf } from "../../src/models/index.ts";
import { RandomPool } from "./random-bytes.ts";

/** Values that are drawn once; every tensor begins somewhere else in them. */
const POOL = 1 << 22;

/** Writes a model directory of the LLaMA family. A tensor is written at a time, so that this needs no memory. */
export function writeRandomCheckpoint(directory: string, config: BackboneConfig): void {
  writeFileSync(
    join(directory, "config.json"),
    JSON.stringify({
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      hidden_size: config.hiddenSize,
      intermediate_size: config.intermediateSize,
      num_hidden_layers: config.numLayers,
      num_attention_heads: config.numHeads,
      num_key_value_heads: config.numKvHeads,
      head_dim: config.headDim,
      vocab_size: config.vocabSize,
      max_position_embeddings: config.maxPositions,
      rms_norm_eps: config.rmsNormEps,
      rope_theta: config.ropeTheta,
      hidden_act: "silu",
      tie_word_embeddings: config.tieWordEmbeddings,
      bos_token_id: 1,
      eos_token_id: 2,
      torch_dtype: "bfloat16",
    }),
  );
  const values = new Float32Array(POOL);
  new RandomPool(1).fillFloats(values, 0.03);
  const pool = float32ToBfloat16(values);
  const header: Record<string, unknown> = {};
  const sizes: number[] = [];
  let end = 0;
  for (const { name, shape } of parametersOf(config)) {
    const bytes = 2 * shape.reduce((a, b) => a * b, 1);
    header[name] = { dtype: "BF16", shape, data_offsets: [end, end + bytes] };
    sizes.push(bytes);
    end += bytes;
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const file = openSync(join(directory, "model.safetensors"), "w");
  try {
    writeSync(file, length);
    writeSync(file, json);
    const bytes = new Uint8Array(pool.buffer);
    for (const [i, size] of sizes.entries()) {
      for (let done = 0; done < size; ) {
        const from = done === 0 ? (i * 7919 * 64) % bytes.length : 0;
        done += writeSync(file, bytes, from, Math.min(bytes.length - from, size - done));
      }
    }
  } finally {
    closeSync(file);
  }
}
