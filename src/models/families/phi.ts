/** @file Phi-3 and Phi-4-mini: queries, keys and values in one module, gate and up in one, as in the checkpoint. */
import { z } from "zod";
import { family } from "./family.ts";
import { commonFields, only, optionalNumber, readRotary, readSizes, size, slidingWindow, window } from "./fields.ts";

const schema = z.looseObject({
  ...commonFields,
  hidden_act: only("silu"),
  attention_bias: only(false),
  mlp_bias: only(false),
  lm_head_bias: only(false),
  original_max_position_embeddings: size(2 ** 24).nullish(),
  partial_rotary_factor: optionalNumber,
  sliding_window: window,
});

/** Defaults are those of transformers' `Phi3Config`, which takes `su` and `yarn` for LongRoPE. */
export const phi3 = family({
  modelType: "phi3",
  architecture: "Phi3ForCausalLM",
  schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 4096, bos: 1, eos: 32000, pad: 32000 }, problems);
    const given = data.rope_scaling ?? data.rope_parameters;
    const rotaryDim = Math.floor(sizes.headDim * (given?.partial_rotary_factor ?? data.partial_rotary_factor ?? 1));
    if (rotaryDim % 2 !== 0 || rotaryDim < 2 || rotaryDim > sizes.headDim) {
      problems.push(`partial_rotary_factor: rotates ${rotaryDim} of ${sizes.headDim} features; needs an even number`);
    }
    const original = data.original_max_position_embeddings ?? 4096;
    const rotary = readRotary(data, sizes, problems, {
      original,
      rotaryDim,
      aliases: { su: "longrope", yarn: "longrope" },
    });
    const kind = rotary.ropeScaling?.kind;
    if (kind !== undefined && kind !== "longrope") problems.push(`rope_scaling.type: ${kind} is not one of Phi-3's`);
    const window = data.sliding_window ?? null;
    const windows = slidingWindow(undefined, window, sizes.numLayers, () => window !== null, problems);
    return {
      ...sizes,
      ...rotary,
      hiddenAct: "silu",
      fusedModules: true,
      ...(rotaryDim !== sizes.headDim && { rotaryDim }),
      ...windows,
    };
  },
});
