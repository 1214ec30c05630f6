/** @file LLaMA 2 and 3 and what is built alike (SmolLM2, TinyLlama): its config.json, field by field. */
import { z } from "zod";
import { family } from "./family.ts";
import { ATTENTION_MODULES, absent, commonFields, MLP_MODULES, only, readRotary, readSizes } from "./fields.ts";

const schema = z.looseObject({
  ...commonFields,
  hidden_act: only("silu"),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  pretraining_tp: only(1),
  sliding_window: absent,
});

/** Defaults are those of transformers' `LlamaConfig`. */
export const llama = family({
  modelType: "llama",
  architecture: "LlamaForCausalLM",
  schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 2048 }, problems);
    const biases = [...(data.attention_bias ? ATTENTION_MODULES : []), ...(data.mlp_bias ? MLP_MODULES : [])];
    const rotary = readRotary(data, sizes, problems);
    return {
      ...sizes,
      ...rotary,
      hiddenAct: "silu",
      ...(biases.length > 0 && { biases }),
    };
  },
});
