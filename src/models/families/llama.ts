/** @file LLaMA 2 and 3 and what is built alike (SmolLM2, TinyLlama): its config.json, field by field. */
import { z } from "zod";
import type { Family } from "../families.ts";
import { absent, commonConfig, commonFields, only, readFields } from "./fields.ts";

/** Defaults are those of transformers' `LlamaConfig`. */
const schema = z.looseObject({
  ...commonFields,
  hidden_act: only("silu"),
  attention_bias: only(false),
  mlp_bias: only(false),
  pretraining_tp: only(1),
  sliding_window: absent,
});

export const llama: Family = {
  modelType: "llama",
  architecture: "LlamaForCausalLM",
  config: (raw, where) => ({
    modelType: "llama",
    ...commonConfig(readFields(schema, raw, where), where),
    hiddenAct: "silu",
  }),
};
