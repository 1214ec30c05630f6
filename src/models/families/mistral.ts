/** @file Mistral: LLaMA with a sliding window on every layer. */
import { z } from "zod";
import type { Family } from "../families.ts";
import {
  absent,
  commonFields,
  only,
  readFields,
  readRotary,
  readSizes,
  slidingWindow,
  throwProblems,
  window,
} from "./fields.ts";

const schema = z.looseObject({
  ...commonFields,
  hidden_act: only("silu"),
  sliding_window: window,
  attention_bias: only(false),
  mlp_bias: only(false),
  layer_types: absent,
});

/** Defaults are those of transformers' `MistralConfig`. A missing `sliding_window` is 4096 there, null is none. */
export const mistral: Family = {
  modelType: "mistral",
  architecture: "MistralForCausalLM",
  config(raw, where) {
    const data = readFields(schema, raw, where);
    const problems: string[] = [];
    const sizes = readSizes(data, { positions: 131072, kvHeads: 8, bos: 1, eos: 2 }, problems);
    const rotary = readRotary(data, sizes, problems);
    const size = data.sliding_window === undefined ? 4096 : data.sliding_window;
    const windows = slidingWindow(undefined, size, sizes.numLayers, () => size !== null, problems);
    throwProblems(problems, where);
    return { modelType: "mistral", ...sizes, ...rotary, hiddenAct: "silu", ...windows };
  },
};
