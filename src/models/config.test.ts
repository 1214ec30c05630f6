/** @file config.json of both transformers layouts; everything not supported is named. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../base/index.ts";
import { readBackboneConfig } from "./config-file.ts";
import { FAMILIES } from "./families.ts";
import { parametersOf } from "./layout.ts";
import { SHAPES } from "./shapes.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "config-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Llama-2-7b's config.json as transformers 4 wrote it. */
const LLAMA2 = {
  _name_or_path: "meta-llama/Llama-2-7b-hf",
  architectures: ["LlamaForCausalLM"],
  bos_token_id: 1,
  eos_token_id: 2,
  hidden_act: "silu",
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 11008,
  max_position_embeddings: 4096,
  model_type: "llama",
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 32,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  tie_word_embeddings: false,
  torch_dtype: "float16",
  transformers_version: "4.31.0.dev0",
  use_cache: true,
  vocab_size: 32000,
};

function write(config: unknown, generation?: unknown): string {
  rmSync(join(directory, "m"), { recursive: true, force: true });
  mkdirSync(join(directory, "m"));
  writeFileSync(join(directory, "m", "config.json"), JSON.stringify(config));
  if (generation !== undefined) {
    writeFileSync(join(directory, "m", "generation_config.json"), JSON.stringify(generation));
  }
  return join(directory, "m");
}

function problemsOf(config: unknown, generation?: unknown): readonly string[] {
  try {
    readBackboneConfig(write(config, generation));
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    return (error as InputError).problems;
  }
  return [];
}

test("transformers 4: Llama 2 is the shape of that name", () => {
  expect(readBackboneConfig(write(LLAMA2))).toEqual(SHAPES["llama-2-7b"]);
});

test("transformers 5: the bundled model", () => {
  expect(readBackboneConfig("assets/tiny-llama")).toEqual({
    modelType: "llama",
    hiddenSize: 192,
    intermediateSize: 512,
    numLayers: 6,
    numHeads: 6,
    numKvHeads: 3,
    headDim: 32,
    vocabSize: 8192,
    rmsNormEps: 1e-5,
    ropeTheta: 10000,
    maxPositions: 1024,
    tieWordEmbeddings: true,
    hiddenAct: "silu",
    bosTokenId: 0,
    eosTokenIds: [0],
    padTokenId: 3,
  });
});

test("both layouts say the same of a model", () => {
  const { rope_scaling: _scaling, torch_dtype: _dtype, ...rest } = LLAMA2;
  const four = readBackboneConfig(write({ ...LLAMA2, rope_theta: 500000 }));
  const five = readBackboneConfig(
    write({ ...rest, dtype: "float16", rope_parameters: { rope_theta: 500000, rope_type: "default" } }),
  );
  expect(four.ropeTheta).toBe(500000);
  expect(five).toEqual(four);
});

test("what is left out has transformers' default", () => {
  const { num_key_value_heads: _kv, rms_norm_eps: _eps, max_position_embeddings: _max, ...rest } = LLAMA2;
  const config = readBackboneConfig(write({ ...rest, bos_token_id: null, eos_token_id: null, pad_token_id: -1 }));
  expect(config).toMatchObject({
    numKvHeads: 32,
    rmsNormEps: 1e-6,
    maxPositions: 2048,
    ropeTheta: 10000,
    headDim: 128,
  });
  expect(config.eosTokenIds).toEqual([]);
  expect("bosTokenId" in config || "padTokenId" in config).toBe(false);
  expect(readBackboneConfig(write({ ...LLAMA2, head_dim: 64 })).headDim).toBe(64);
});

test("eos_token_id may be a list, and generation_config.json wins", () => {
  expect(readBackboneConfig(write({ ...LLAMA2, eos_token_id: [2, 7] })).eosTokenIds).toEqual([2, 7]);
  const merged = readBackboneConfig(write(LLAMA2, { eos_token_id: [5, 6], pad_token_id: 0 }));
  expect([merged.eosTokenIds, merged.padTokenId, merged.bosTokenId]).toEqual([[5, 6], 0, 1]);
  expect(problemsOf(LLAMA2, { eos_token_id: 32000 })).toEqual([
    "eos_token_id: 32000 is outside the vocabulary of 32000",
  ]);
  expect(problemsOf(LLAMA2, { eos_token_id: "</s>" })[0]).toMatch(/^eos_token_id: /);
});

describe("not supported", () => {
  test.each([
    ["rope_scaling.rope_type", { rope_scaling: { rope_type: "proportional", factor: 8 } }],
    ["rope_scaling.type", { rope_scaling: { type: "mrope" } }],
    ["rope_scaling.factor", { rope_scaling: { type: "linear" } }],
    ["rope_scaling.factor", { rope_scaling: { type: "linear", factor: 0.5 } }],
    ["rope_scaling.low_freq_factor", { rope_scaling: { rope_type: "llama3", factor: 8, high_freq_factor: 4 } }],
    [
      "rope_parameters.short_factor",
      { rope_parameters: { rope_type: "longrope", short_factor: [1], long_factor: Array(64).fill(2) } },
    ],
    ["rope_parameters.partial_rotary_factor", { rope_parameters: { partial_rotary_factor: 0.5 } }],
    ["attention_bias", { attention_bias: 1 }],
    ["mlp_bias", { mlp_bias: "yes" }],
    ["hidden_act", { hidden_act: "gelu" }],
    ["pretraining_tp", { pretraining_tp: 2 }],
    ["sliding_window", { sliding_window: 4096 }],
    ["quantization_config", { quantization_config: { quant_method: "gptq" } }],
    ["partial_rotary_factor", { partial_rotary_factor: 0.5 }],
    ["num_key_value_heads", { num_key_value_heads: 5 }],
    ["num_attention_heads", { num_attention_heads: 24, num_key_value_heads: 24 }],
    ["head_dim", { head_dim: 63 }],
    ["hidden_size", { hidden_size: "4096" }],
    ["num_hidden_layers", { num_hidden_layers: 1e15 }],
    ["vocab_size", { vocab_size: 0 }],
    ["eos_token_id", { eos_token_id: 99999 }],
    ["rope_theta", { rope_theta: 5, rope_parameters: { rope_theta: 6 } }],
  ])("%s is named", (field, change) => {
    const problems = problemsOf({ ...LLAMA2, ...change });
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(new RegExp(`^${field}: .`));
  });

  test("all at once", () => {
    const problems = problemsOf({ ...LLAMA2, hidden_size: undefined, attention_bias: 1, hidden_act: "relu" });
    expect(problems.map((problem) => problem.split(":")[0]).sort()).toEqual([
      "attention_bias",
      "hidden_act",
      "hidden_size",
    ]);
  });

  test("other architectures, with what is supported", () => {
    expect(problemsOf({ ...LLAMA2, architectures: ["GPT2LMHeadModel"], model_type: "gpt2" })[0]).toMatch(
      /GPT2LMHeadModel is not supported \(supported: LlamaForCausalLM, MistralForCausalLM, /,
    );
    expect(problemsOf({ architectures: ["Gemma3ForConditionalGeneration"], model_type: "gemma3" })[0]).toMatch(
      /^architectures: Gemma3ForConditionalGeneration is not supported: it sees pictures too; use /,
    );
    expect(problemsOf({ model_type: "mamba" })[0]).toMatch(/^model_type: mamba is not supported/);
    expect(problemsOf({})[0]).toMatch(/^model_type: missing/);
    expect(problemsOf([])).toHaveLength(1);
  });

  test("no directory, no config.json", () => {
    expect(() => readBackboneConfig(join(directory, "none"))).toThrow(/no such model directory/);
    mkdirSync(join(directory, "empty"));
    expect(() => readBackboneConfig(join(directory, "empty"))).toThrow(/has no config.json/);
  });
});

test("a family knows its weights: names and shapes are those of the bundled checkpoint", () => {
  const config = readBackboneConfig("assets/tiny-llama");
  const bytes = readFileSync("assets/tiny-llama/model.safetensors");
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as Record<string, { shape: number[] }>;
  delete header.__metadata__;
  const parameters = parametersOf(config);
  expect(Object.fromEntries(parameters.map(({ name, shape }) => [name, shape]))).toEqual(
    Object.fromEntries(Object.entries(header).map(([name, { shape }]) => [name, shape])),
  );
  for (const [name, family] of Object.entries(FAMILIES)) expect(family.modelType).toBe(name);
});

test("shapes: the parameter counts the models are known by", () => {
  const count = (name: keyof typeof SHAPES): number =>
    parametersOf(SHAPES[name]).reduce((sum, { shape }) => sum + shape.reduce((product, dim) => product * dim, 1), 0);
  expect(count("llama-2-7b")).toBe(6_738_415_616);
  expect(count("llama-2-13b")).toBe(13_015_864_320);
  expect(count("tinyllama-1.1b")).toBe(1_100_048_384);
  expect(count("smollm2-135m")).toBe(134_515_008);
});
