/** @file The config.json that a GGUF file's metadata stand for; the model's family then reads it as any other. */
import { InputError } from "../../base/index.ts";
import { ARCHITECTURES, type Architecture, type Setting } from "./architectures.ts";
import type { GgufHeader, MetadataValue } from "./header.ts";

type Metadata = GgufHeader["metadata"];

/** The shortest decimal that gives the same float32: 1e-5, and not 9.999999747378752e-6. */
function shortest(value: number): number {
  for (let digits = 6; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return value;
}

/** @throws InputError `CONFIG_UNSUPPORTED` */
export function architectureOf(metadata: Metadata, where: string): Architecture {
  const name = metadata.get("general.architecture");
  const type = metadata.get("general.type") ?? "model";
  if (type !== "model") {
    throw new InputError("CONFIG_UNSUPPORTED", where, `general.type is ${JSON.stringify(type)}: this is no model`);
  }
  if (typeof name === "string" && Object.hasOwn(ARCHITECTURES, name)) return ARCHITECTURES[name]!;
  const known = Object.keys(ARCHITECTURES).join(", ");
  const found = typeof name === "string" ? JSON.stringify(name) : "missing";
  throw new InputError("CONFIG_UNSUPPORTED", where, `general.architecture is ${found}, not one of ${known}`);
}

/** Settings of the file's architecture; numbers stored as float32 as short as they were written. */
function settingsOf(metadata: Metadata): Setting {
  const prefix = String(metadata.get("general.architecture"));
  return (key) => {
    const value = metadata.get(`${prefix}.${key}`);
    return typeof value === "number" && !Number.isInteger(value) ? shortest(value) : value;
  };
}

/** End-of-turn tokens which llama.cpp, too, takes to end a text when the vocabulary has them as control tokens. */
const ENDS = new Set([
  "<|eot_id|>",
  "<|im_end|>",
  "<|end|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "<|eom_id|>",
  "<|end_of_text|>",
]);

const CONTROL = 3;

function endTokens(metadata: Metadata): number[] {
  const named = ["eos", "eot", "eom"].map((name) => metadata.get(`tokenizer.ggml.${name}_token_id`));
  const found = new Set(named.filter((id): id is number => typeof id === "number"));
  const tokens = metadata.get("tokenizer.ggml.tokens");
  const types = metadata.get("tokenizer.ggml.token_type");
  if (found.size > 0 && Array.isArray(tokens) && types instanceof Int32Array) {
    for (let id = 0; id < tokens.length; id++) if (types[id] === CONTROL && ENDS.has(tokens[id])) found.add(id);
  }
  return [...found];
}

/** How positions are scaled beyond the length the model was trained on; `factors` divide the frequencies one by one. */
function ropeOf(setting: Setting, factors: { short?: number[]; long?: number[]; all?: number[] }) {
  const theta = { rope_theta: setting("rope.freq_base") ?? 10000 };
  const original = setting("rope.scaling.original_context_length");
  // The file holds what llama3's rule gives for its model, and no longer the rule: the same as one list for all lengths.
  if (factors.all) {
    return {
      ...theta,
      rope_type: "longrope",
      short_factor: factors.all,
      long_factor: factors.all,
      attention_factor: 1,
    };
  }
  if (factors.short && factors.long) {
    return {
      ...theta,
      rope_type: "longrope",
      short_factor: factors.short,
      long_factor: factors.long,
      attention_factor: setting("rope.scaling.attn_factor"),
      original_max_position_embeddings: original,
    };
  }
  const type = setting("rope.scaling.type");
  if (type === undefined || type === "none") return { ...theta, rope_type: "default" };
  return {
    ...theta,
    rope_type: type,
    factor: setting("rope.scaling.factor"),
    ...(original === undefined ? {} : { original_max_position_embeddings: original }),
  };
}

/**
 * Fields of config.json.
 * @param factors of the rotary frequencies, where the file has them as tensors
 */
export function configOf(
  header: Pick<GgufHeader, "metadata" | "tensors">,
  where: string,
  factors: Parameters<typeof ropeOf>[1] = {},
): Record<string, MetadataValue | object | null | undefined> {
  const { metadata, tensors } = header;
  const architecture = architectureOf(metadata, where);
  const setting = settingsOf(metadata);
  const heads = setting("attention.head_count");
  const hidden = setting("embedding_length");
  const width = Number(hidden) / Number(heads);
  const headDim = setting("attention.key_length") ?? (Number.isNaN(width) ? undefined : width);
  const value = setting("attention.value_length") ?? headDim;
  const rotated = setting("rope.dimension_count") ?? headDim;
  if (value !== headDim) {
    const problem = `attention.value_length ${String(value)} is not attention.key_length ${String(headDim)}`;
    throw new InputError("CONFIG_UNSUPPORTED", where, problem);
  }
  const kind = ropeOf(setting, factors);
  const rope = rotated === headDim ? kind : { ...kind, partial_rotary_factor: Number(rotated) / Number(headDim) };
  return {
    architectures: [architecture.className],
    model_type: architecture.modelType,
    hidden_size: hidden,
    intermediate_size: setting("feed_forward_length"),
    num_hidden_layers: setting("block_count"),
    num_attention_heads: heads,
    num_key_value_heads: setting("attention.head_count_kv") ?? heads,
    head_dim: headDim,
    vocab_size: tensors.get("token_embd.weight")?.shape[0],
    max_position_embeddings: setting("context_length"),
    rms_norm_eps: setting("attention.layer_norm_rms_epsilon"),
    rope_parameters: rope,
    tie_word_embeddings: !tensors.has("output.weight"),
    hidden_act: "silu",
    attention_bias: tensors.has("blk.0.attn_output.bias"),
    mlp_bias: tensors.has("blk.0.ffn_up.bias"),
    bos_token_id: metadata.get("tokenizer.ggml.bos_token_id") ?? null,
    eos_token_id: endTokens(metadata),
    pad_token_id: metadata.get("tokenizer.ggml.padding_token_id") ?? null,
    ...architecture.fields?.(setting, rope),
  };
}
