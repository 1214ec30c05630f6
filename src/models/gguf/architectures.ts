/** @file What GGUF files call the settings and weights of each architecture, and what they do to the weights. */
import type { MetadataValue } from "./header.ts";

/** A setting of the model's architecture by its key without the prefix, e.g. `attention.head_count`. */
export type Setting = (key: string) => MetadataValue | undefined;

export interface Architecture {
  /** Of config.json. */
  readonly modelType: string;
  readonly className: string;
  /** Names inside `blk.N.` (without `.weight` and `.bias`), and the modules of a layer that they stand for. */
  readonly modules: Readonly<Record<string, string>>;
  /** Rows of Q and K are stored with the two halves of each head interleaved, for ggml's way of rotating. */
  readonly permuted?: true;
  /** Weights of norms are stored with 1 added. */
  readonly shiftedNorms?: true;
  /** Fields of config.json beside those that all have. */
  fields?(setting: Setting, rope: object): Record<string, unknown>;
}

/** Tensors outside of the layers. */
export const TABLES: Readonly<Record<string, string>> = {
  token_embd: "model.embed_tokens",
  output_norm: "model.norm",
  output: "lm_head",
};

const ATTENTION = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
};

const MLP = { ffn_gate: "mlp.gate_proj", ffn_up: "mlp.up_proj", ffn_down: "mlp.down_proj" };

const LLAMA = { ...ATTENTION, ffn_norm: "post_attention_layernorm", ...MLP };

const HEAD_NORMS = { attn_q_norm: "self_attn.q_norm", attn_k_norm: "self_attn.k_norm" };

/** Norms before and after each sub-layer. */
const SANDWICH = {
  ...ATTENTION,
  post_attention_norm: "post_attention_layernorm",
  ffn_norm: "pre_feedforward_layernorm",
  post_ffw_norm: "post_feedforward_layernorm",
  ...MLP,
};

const GELU = { hidden_activation: "gelu_pytorch_tanh", hidden_act: "gelu_pytorch_tanh" };

/** Not in the file. As llama.cpp: only the 27B model, told by its layers, scales by another width than the head's. */
const queryScale = (setting: Setting, layersOf27B: number) =>
  setting("block_count") === layersOf27B
    ? Number(setting("embedding_length")) / Number(setting("attention.head_count"))
    : setting("attention.key_length");

/** By `general.architecture`. */
export const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  llama: { modelType: "llama", className: "LlamaForCausalLM", modules: LLAMA, permuted: true },
  qwen2: { modelType: "qwen2", className: "Qwen2ForCausalLM", modules: LLAMA },
  qwen3: { modelType: "qwen3", className: "Qwen3ForCausalLM", modules: { ...LLAMA, ...HEAD_NORMS } },
  gemma: {
    modelType: "gemma",
    className: "GemmaForCausalLM",
    modules: LLAMA,
    shiftedNorms: true,
    fields: () => GELU,
  },
  gemma2: {
    modelType: "gemma2",
    className: "Gemma2ForCausalLM",
    modules: SANDWICH,
    shiftedNorms: true,
    fields: (setting) => ({
      ...GELU,
      attn_logit_softcapping: setting("attn_logit_softcapping"),
      final_logit_softcapping: setting("final_logit_softcapping"),
      sliding_window: setting("attention.sliding_window"),
      query_pre_attn_scalar: queryScale(setting, 46),
    }),
  },
  gemma3: {
    modelType: "gemma3_text",
    className: "Gemma3ForCausalLM",
    modules: { ...SANDWICH, ...HEAD_NORMS },
    shiftedNorms: true,
    fields: (setting, rope) => ({
      ...GELU,
      sliding_window: setting("attention.sliding_window"),
      sliding_window_pattern: 6,
      rope_parameters: {
        full_attention: rope,
        sliding_attention: { rope_type: "default", rope_theta: setting("rope.freq_base_swa") ?? 10000 },
      },
      final_logit_softcapping: setting("final_logit_softcapping"),
      query_pre_attn_scalar: queryScale(setting, 62),
    }),
  },
  phi3: {
    modelType: "phi3",
    className: "Phi3ForCausalLM",
    modules: {
      attn_norm: "input_layernorm",
      attn_qkv: "self_attn.qkv_proj",
      attn_output: "self_attn.o_proj",
      ffn_norm: "post_attention_layernorm",
      ffn_up: "mlp.gate_up_proj",
      ffn_down: "mlp.down_proj",
    },
    fields: (setting) => ({
      sliding_window: setting("attention.sliding_window"),
      original_max_position_embeddings: setting("rope.scaling.original_context_length"),
    }),
  },
};
