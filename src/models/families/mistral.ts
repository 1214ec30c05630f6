/** @file Mistral: LLaMA with a sliding window on every layer. */
import { z } from "zod";
import { family } from "./family.ts";
import { absent, commonFields, only, readRotary, readSizes, slidingWindow, window } from "./fields.ts";

const schema = z.looseObject({
  ...commonFields,
  hidden_act: only("silu"),
  sliding_window: window,
  attention_bias: only(false),
  mlp_bias: only(false),
  layer_types: absent,
});

/** Defaults are those of transformers' `MistralConfig`. A missing `sliding_window` is 4096 there, null is none. */
export const mistral = family({
  modelType: "mistral",
  architecture: "MistralForCausalLM",
  schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 131072, kvHeads: 8, bos: 1, eos: 2 }, problems);
    const rotary = readRotary(data, sizes, problems);
    const size = data.sliding_window === undefined ? 4096 : data.sliding_window;
    const windows = slidingWindow(undefined, size, sizes.numLayers, () => size !== null, problems);
    return { ...sizes, ...rotary, hiddenAct: "silu", ...windows };
  },
});
