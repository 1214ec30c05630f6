/** @file config.json of well-known models of each family, in the layouts of transformers 4 and 5; what is refused, and how. */
import { describe, expect, test } from "vitest";
import { InputError } from "../../base/index.ts";
import { FAMILIES } from "../families.ts";
import { parametersOf } from "../layout.ts";
import { SHAPES, type ShapeName } from "../shapes.ts";

type Raw = Readonly<Record<string, unknown>>;

const configOf = (raw: Raw) => FAMILIES[raw.model_type as string]!.config(raw, "config.json");

function problemsOf(raw: Raw): readonly string[] {
  try {
    configOf(raw);
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    return (error as InputError).problems;
  }
  return [];
}

/** As published, without what says nothing about numbers. */
const PUBLISHED = {
  "llama-3.2-1b": {
    model_type: "llama",
    attention_bias: false,
    bos_token_id: 128000,
    eos_token_id: 128001,
    head_dim: 64,
    hidden_act: "silu",
    hidden_size: 2048,
    intermediate_size: 8192,
    max_position_embeddings: 131072,
    mlp_bias: false,
    num_attention_heads: 32,
    num_hidden_layers: 16,
    num_key_value_heads: 8,
    pretraining_tp: 1,
    rms_norm_eps: 1e-5,
    rope_scaling: {
      factor: 32,
      high_freq_factor: 4,
      low_freq_factor: 1,
      original_max_position_embeddings: 8192,
      rope_type: "llama3",
    },
    rope_theta: 500000,
    tie_word_embeddings: true,
    vocab_size: 128256,
  },
  "mistral-7b": {
    model_type: "mistral",
    bos_token_id: 1,
    eos_token_id: 2,
    hidden_act: "silu",
    hidden_size: 4096,
    intermediate_size: 14336,
    max_position_embeddings: 32768,
    num_attention_heads: 32,
    num_hidden_layers: 32,
    num_key_value_heads: 8,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    sliding_window: 4096,
    tie_word_embeddings: false,
    vocab_size: 32000,
  },
  "qwen2.5-0.5b": {
    model_type: "qwen2",
    attention_dropout: 0,
    bos_token_id: 151643,
    eos_token_id: 151643,
    hidden_act: "silu",
    hidden_size: 896,
    intermediate_size: 4864,
    max_position_embeddings: 32768,
    max_window_layers: 24,
    num_attention_heads: 14,
    num_hidden_layers: 24,
    num_key_value_heads: 2,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    sliding_window: 32768,
    tie_word_embeddings: true,
    use_mrope: false,
    use_sliding_window: false,
    vocab_size: 151936,
  },
  "gemma-2b": {
    model_type: "gemma",
    attention_bias: false,
    bos_token_id: 2,
    eos_token_id: 1,
    head_dim: 256,
    hidden_act: "gelu",
    hidden_activation: null,
    hidden_size: 2048,
    intermediate_size: 16384,
    max_position_embeddings: 8192,
    num_attention_heads: 8,
    num_hidden_layers: 18,
    num_key_value_heads: 1,
    pad_token_id: 0,
    rms_norm_eps: 1e-6,
    rope_scaling: null,
    rope_theta: 10000,
    vocab_size: 256000,
  },
  "gemma-2-2b": {
    model_type: "gemma2",
    attention_bias: false,
    attn_logit_softcapping: 50,
    bos_token_id: 2,
    cache_implementation: "hybrid",
    eos_token_id: 1,
    final_logit_softcapping: 30,
    head_dim: 256,
    hidden_act: "gelu_pytorch_tanh",
    hidden_activation: "gelu_pytorch_tanh",
    hidden_size: 2304,
    intermediate_size: 9216,
    max_position_embeddings: 8192,
    num_attention_heads: 8,
    num_hidden_layers: 26,
    num_key_value_heads: 4,
    pad_token_id: 0,
    query_pre_attn_scalar: 256,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    sliding_window: 4096,
    vocab_size: 256000,
  },
  "phi-3-mini": {
    model_type: "phi3",
    attention_bias: false,
    bos_token_id: 1,
    eos_token_id: 32000,
    hidden_act: "silu",
    hidden_size: 3072,
    intermediate_size: 8192,
    max_position_embeddings: 4096,
    num_attention_heads: 32,
    num_hidden_layers: 32,
    num_key_value_heads: 32,
    original_max_position_embeddings: 4096,
    pad_token_id: 32000,
    rms_norm_eps: 1e-5,
    rope_scaling: null,
    rope_theta: 10000,
    sliding_window: 2047,
    tie_word_embeddings: false,
    vocab_size: 32064,
  },
} satisfies Partial<Record<ShapeName, Raw>>;

const COUNTS: Readonly<Record<keyof typeof PUBLISHED, number>> = {
  "llama-3.2-1b": 1_235_814_400,
  "mistral-7b": 7_241_732_096,
  "qwen2.5-0.5b": 494_032_768,
  "gemma-2b": 2_506_172_416,
  "gemma-2-2b": 2_614_341_888,
  "phi-3-mini": 3_821_079_552,
};

describe.each(Object.keys(PUBLISHED) as (keyof typeof PUBLISHED)[])("%s", (name) => {
  test("config.json is the shape of that name", () => {
    expect(configOf(PUBLISHED[name])).toEqual(SHAPES[name]);
  });

  test("has the number of parameters that it is known by", () => {
    const sizes = parametersOf(SHAPES[name]).map(({ shape }) => shape.reduce((product, dim) => product * dim, 1));
    expect(sizes.reduce((a, b) => a + b)).toBe(COUNTS[name]);
  });
});

const QWEN3 = {
  model_type: "qwen3",
  attention_bias: false,
  bos_token_id: 151643,
  eos_token_id: 151645,
  head_dim: 128,
  hidden_size: 1024,
  intermediate_size: 3072,
  max_position_embeddings: 40960,
  max_window_layers: 28,
  num_attention_heads: 16,
  num_hidden_layers: 28,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-6,
  rope_theta: 1000000,
  sliding_window: null,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: 151936,
};

/** gemma-3-1b as transformers 4 wrote it. */
const GEMMA3 = {
  model_type: "gemma3_text",
  attn_logit_softcapping: null,
  bos_token_id: 2,
  eos_token_id: [1, 106],
  final_logit_softcapping: null,
  head_dim: 256,
  hidden_activation: "gelu_pytorch_tanh",
  hidden_size: 1152,
  intermediate_size: 6912,
  max_position_embeddings: 32768,
  num_attention_heads: 4,
  num_hidden_layers: 26,
  num_key_value_heads: 1,
  pad_token_id: 0,
  query_pre_attn_scalar: 256,
  rms_norm_eps: 1e-6,
  rope_local_base_freq: 10000,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: 512,
  sliding_window_pattern: 6,
  vocab_size: 262144,
};

test("Qwen 3 and Gemma 3: numbers of parameters, head norms, kinds of layers", () => {
  const count = (raw: Raw): number =>
    parametersOf(configOf(raw)).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  expect(count(QWEN3)).toBe(596_049_920);
  expect(count(GEMMA3)).toBe(999_885_952);
  const gemma = configOf(GEMMA3);
  expect(gemma).toMatchObject({
    qkNorm: true,
    postNorms: true,
    normOffset: 1,
    ropeTheta: 1e6,
    localRope: { theta: 1e4 },
  });
  const global = Array.from({ length: 26 }, (_, layer) => layer).filter(
    (layer) => !gemma.slidingWindow!.layers.includes(layer),
  );
  expect(global).toEqual([5, 11, 17, 23]);
  expect(gemma).not.toHaveProperty("attentionScale"); // 1 / √256, the head's own
  expect(configOf({ ...GEMMA3, query_pre_attn_scalar: 168 }).attentionScale).toBe(168 ** -0.5);
});

test("Gemma 3 in transformers 5: by kind of layer", () => {
  const { rope_theta: _t, rope_scaling: _s, rope_local_base_freq: _l, sliding_window_pattern: _p, ...rest } = GEMMA3;
  const five = {
    ...rest,
    layer_types: Array.from({ length: 26 }, (_, i) => ((i + 1) % 6 === 0 ? "full_attention" : "sliding_attention")),
    rope_parameters: {
      full_attention: { rope_type: "linear", factor: 8, rope_theta: 1000000 },
      sliding_attention: { rope_type: "default", rope_theta: 10000 },
    },
  };
  const four = { ...GEMMA3, rope_scaling: { rope_type: "linear", factor: 8 } };
  expect(configOf(five)).toEqual(configOf(four));
  expect(configOf(five)).toMatchObject({ ropeScaling: { kind: "linear", factor: 8 }, maxPositions: 32768 });
});

test("Qwen: windows from max_window_layers on, only where use_sliding_window says so", () => {
  const windows = (change: Raw) => configOf({ ...PUBLISHED["qwen2.5-0.5b"], ...change }).slidingWindow;
  expect(windows({})).toBeUndefined();
  const used = { use_sliding_window: true, sliding_window: 1024 };
  expect(windows({ ...used, max_window_layers: 22 })).toEqual({ size: 1024, layers: [22, 23] });
  expect(windows({ ...used, max_window_layers: 24 })).toBeUndefined();
  const types = Array.from({ length: 24 }, (_, i) => (i === 3 ? "sliding_attention" : "full_attention"));
  expect(windows({ ...used, layer_types: types })).toEqual({ size: 1024, layers: [3] });
});

test("Mistral: null is no window, a missing one transformers' 4096", () => {
  const { sliding_window: _, ...rest } = PUBLISHED["mistral-7b"];
  expect(configOf(rest)).toEqual(SHAPES["mistral-7b"]);
  expect(configOf({ ...rest, sliding_window: null })).not.toHaveProperty("slidingWindow");
});

test("Phi-3: LongRoPE under its older names, rotating a part of each head", () => {
  const factors = { short_factor: Array(36).fill(1), long_factor: Array(36).fill(2) };
  const raw = { ...PUBLISHED["phi-3-mini"], max_position_embeddings: 131072, partial_rotary_factor: 0.75 };
  const su = configOf({ ...raw, rope_scaling: { type: "su", ...factors } });
  expect(su).toMatchObject({
    rotaryDim: 72,
    maxPositions: 131072,
    ropeScaling: { kind: "longrope", original: 4096, attention: Math.sqrt(1 + Math.log(32) / Math.log(4096)) },
  });
  const { partial_rotary_factor: partial, rope_theta, rope_scaling: _, ...rest } = { ...raw };
  const parameters = { rope_type: "longrope", rope_theta, partial_rotary_factor: partial, ...factors };
  expect(configOf({ ...rest, rope_parameters: parameters })).toEqual(su);
});

describe("not supported, named by field", () => {
  const { "mistral-7b": mistral, "gemma-2b": gemma, "gemma-2-2b": gemma2, "phi-3-mini": phi } = PUBLISHED;
  const qwen = PUBLISHED["qwen2.5-0.5b"];
  test.each([
    [mistral, "hidden_act", { hidden_act: "gelu" }],
    [mistral, "layer_types", { layer_types: ["full_attention"] }],
    [mistral, "sliding_window", { sliding_window: 0 }],
    [mistral, "head_dim", { head_dim: 101 }],
    [gemma, "hidden_activation", { hidden_activation: "relu" }],
    [gemma, "use_bidirectional_attention", { use_bidirectional_attention: true }],
    [gemma2, "hidden_activation", { hidden_activation: "gelu" }],
    [gemma2, "attn_logit_softcapping", { attn_logit_softcapping: -1 }],
    [gemma2, "layer_types.1", { layer_types: ["full_attention", "chunked_attention"] }],
    [gemma2, "layer_types", { layer_types: ["full_attention"] }],
    [gemma2, "sliding_window", { sliding_window: null }],
    [GEMMA3, "rope_parameters.full_attention.rope_type", { rope_parameters: { full_attention: { rope_type: "own" } } }],
    [qwen, "max_window_layers", { max_window_layers: -1 }],
    [qwen, "rope_scaling.rope_type", { rope_scaling: { rope_type: "mrope" } }],
    [qwen, "quantization_config", { quantization_config: { quant_method: "awq" } }],
    [QWEN3, "attention_bias", { attention_bias: "no" }],
    [phi, "rope_scaling.type", { rope_scaling: { type: "linear", factor: 2 } }],
    [phi, "partial_rotary_factor", { partial_rotary_factor: 0.01 }],
    [
      phi,
      "rope_scaling.long_factor",
      { rope_scaling: { type: "su", short_factor: Array(48).fill(1), long_factor: [1] } },
    ],
  ])("$model_type: %s %s", (raw, field, change) => {
    const problems = problemsOf({ ...raw, ...change });
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(new RegExp(`^${field.replaceAll(".", "\\.")}: .`));
  });
});
