/** @file Qwen 2, 2.5 (biases on queries, keys and values) and 3 (norms of query and key heads instead). */
import { z } from "zod";
import { family } from "./family.ts";
import {
  ATTENTION_MODULES,
  commonFields,
  layerTypes,
  only,
  readRotary,
  readSizes,
  slidingWindow,
  window,
} from "./fields.ts";

const fields = {
  ...commonFields,
  hidden_act: only("silu"),
  use_sliding_window: z.boolean().nullish(),
  sliding_window: window,
  max_window_layers: z.number().int().min(0).default(28),
  layer_types: layerTypes,
  use_mrope: only(false),
};

/** With `use_sliding_window`, layers from `max_window_layers` on have a window, unless `layer_types` says otherwise. */
function windowsOf(data: z.output<z.ZodObject<typeof fields>>, problems: string[]) {
  const used = data.use_sliding_window ?? false;
  const size = used ? (data.sliding_window === undefined ? 4096 : data.sliding_window) : null;
  const isSliding = (layer: number) => size !== null && layer >= data.max_window_layers;
  return slidingWindow(data.layer_types, size, data.num_hidden_layers, isSliding, problems);
}

const qwen2Schema = z.looseObject(fields);

/** Defaults are those of transformers' `Qwen2Config`. */
export const qwen2 = family({
  modelType: "qwen2",
  architecture: "Qwen2ForCausalLM",
  schema: qwen2Schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 32768 }, problems);
    const rotary = readRotary(data, sizes, problems);
    const windows = windowsOf(data, problems);
    const biases = ["q_proj", "k_proj", "v_proj"];
    return { ...sizes, ...rotary, hiddenAct: "silu", biases, ...windows };
  },
});

const qwen3Schema = z.looseObject({ ...fields, attention_bias: z.boolean().nullish() });

/** Defaults are those of transformers' `Qwen3Config`. */
export const qwen3 = family({
  modelType: "qwen3",
  architecture: "Qwen3ForCausalLM",
  schema: qwen3Schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 32768, headDim: 128 }, problems);
    const rotary = readRotary(data, sizes, problems);
    const windows = windowsOf(data, problems);
    return {
      ...sizes,
      ...rotary,
      hiddenAct: "silu",
      ...(data.attention_bias && { biases: ATTENTION_MODULES }),
      qkNorm: true,
      ...windows,
    };
  },
});
