/** @file Gemma 1, 2 and 3 (text): scaled embeddings, norms stored as their distance from 1, soft caps, local layers. */
import { z } from "zod";
import type { BackboneConfig } from "../config.ts";
import { family } from "./family.ts";
import {
  ATTENTION_MODULES,
  commonFields,
  layerTypes,
  only,
  optionalNumber,
  readRotary,
  readSizes,
  size,
  slidingWindow,
  window,
} from "./fields.ts";
import { readRope, ropeSchema } from "./rope.ts";

const TANH = "gelu_pytorch_tanh";

const fields = {
  ...commonFields,
  attention_bias: z.boolean().nullish(),
  use_bidirectional_attention: only(false),
};

/** What all of them are. Tokens: `<bos>` 2, `<eos>` 1, `<pad>` 0. */
function gemmaConfig(sizes: ReturnType<typeof readSizes>, attentionBias: boolean | null | undefined) {
  return {
    ...sizes,
    hiddenAct: "gelu_tanh",
    normOffset: 1,
    embeddingScale: Math.sqrt(sizes.hiddenSize),
    ...(attentionBias && { biases: ATTENTION_MODULES }),
  } as const;
}

const DEFAULTS = { headDim: 256, tied: true, bos: 2, eos: 1, pad: 0 } as const;

const gemmaSchema = z.looseObject({
  ...fields,
  // Early checkpoints say "gelu" and mean the tanh formula, as transformers takes it.
  hidden_act: only(TANH, "gelu"),
  hidden_activation: only(TANH),
});

/** Defaults are those of transformers' `GemmaConfig`. */
export const gemma = family({
  modelType: "gemma",
  architecture: "GemmaForCausalLM",
  schema: gemmaSchema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 8192, ...DEFAULTS }, problems);
    const rotary = readRotary(data, sizes, problems);
    return { ...gemmaConfig(sizes, data.attention_bias), ...rotary };
  },
});

const laterFields = {
  ...fields,
  // Checkpoints repeat it under the older name, which is not read.
  hidden_activation: only(TANH),
  hidden_act: only(TANH),
  query_pre_attn_scalar: z.number().positive().default(256),
  attn_logit_softcapping: optionalNumber,
  final_logit_softcapping: optionalNumber,
  sliding_window: window,
  layer_types: layerTypes,
};

/** What Gemma 2 and 3 share; a missing soft cap has the class's default, null is none. */
function laterConfig(
  data: z.output<z.ZodObject<typeof laterFields>>,
  sizes: ReturnType<typeof readSizes>,
  caps: { readonly attention?: number; readonly logits?: number },
) {
  const cap = (given: number | null | undefined, otherwise: number | undefined) =>
    given === undefined ? otherwise : (given ?? undefined);
  const attention = cap(data.attn_logit_softcapping, caps.attention);
  const logits = cap(data.final_logit_softcapping, caps.logits);
  return {
    ...gemmaConfig(sizes, data.attention_bias),
    postNorms: true,
    ...(data.query_pre_attn_scalar !== sizes.headDim && { attentionScale: data.query_pre_attn_scalar ** -0.5 }),
    ...(attention !== undefined && { attentionSoftcap: attention }),
    ...(logits !== undefined && { logitSoftcap: logits }),
  } as const;
}

/** Every `pattern`-th layer is global. */
function windowsOf(
  data: z.output<z.ZodObject<typeof laterFields>>,
  sizes: ReturnType<typeof readSizes>,
  pattern: number,
  problems: string[],
) {
  const size = data.sliding_window === undefined ? 4096 : data.sliding_window;
  return slidingWindow(data.layer_types, size, sizes.numLayers, (layer) => (layer + 1) % pattern !== 0, problems);
}

const gemma2Schema = z.looseObject(laterFields);

/** Defaults are those of transformers' `Gemma2Config`: every second layer is local, beginning with the first. */
export const gemma2 = family({
  modelType: "gemma2",
  architecture: "Gemma2ForCausalLM",
  schema: gemma2Schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 8192, kvHeads: 4, ...DEFAULTS }, problems);
    const rotary = readRotary(data, sizes, problems);
    const windows = windowsOf(data, sizes, 2, problems);
    return { ...laterConfig(data, sizes, { attention: 50, logits: 30 }), ...rotary, ...windows };
  },
});

/** transformers 5 has them by kind of layer. */
const nestedRope = z.looseObject({ full_attention: ropeSchema.nullish(), sliding_attention: ropeSchema.nullish() });

const gemma3Schema = z.looseObject({
  ...laterFields,
  rope_parameters: nestedRope.nullish(),
  rope_local_base_freq: z.number().positive().optional(),
  sliding_window_pattern: size(2 ** 10).default(6),
});

type Gemma3Fields = z.output<typeof gemma3Schema>;

/** Global layers rotate with a larger base, and scaled where the config says so; local ones as Gemma 2 does. */
function gemma3Rotary(
  data: Gemma3Fields,
  sizes: ReturnType<typeof readSizes>,
  problems: string[],
): Pick<BackboneConfig, "ropeTheta" | "ropeScaling" | "localRope"> {
  const { full_attention: full, sliding_attention: sliding } = data.rope_parameters ?? {};
  const context = { positions: sizes.maxPositions, rotaryDim: sizes.headDim };
  const global = readRope(
    { ...full, ...data.rope_scaling },
    {
      ...context,
      field: data.rope_scaling ? "rope_scaling" : "rope_parameters.full_attention",
      theta: full?.rope_theta ?? data.rope_scaling?.rope_theta ?? data.rope_theta ?? 1e6,
    },
    problems,
  );
  const local = readRope(
    sliding ?? {},
    {
      ...context,
      field: "rope_parameters.sliding_attention",
      theta: sliding?.rope_theta ?? data.rope_local_base_freq ?? 1e4,
    },
    problems,
  );
  for (const [field, given] of Object.entries({ full_attention: full, sliding_attention: sliding })) {
    const partial = given?.partial_rotary_factor ?? 1;
    if (partial !== 1) {
      problems.push(`rope_parameters.${field}.partial_rotary_factor: ${partial} is not supported, only 1`);
    }
  }
  return {
    ropeTheta: global.theta,
    ...(global.scaling && { ropeScaling: global.scaling }),
    localRope: local,
  };
}

/** Defaults are those of transformers' `Gemma3TextConfig`: of six layers five are local. */
export const gemma3 = family({
  modelType: "gemma3_text",
  architecture: "Gemma3ForCausalLM",
  schema: gemma3Schema,
  read(data, problems) {
    const sizes = readSizes(data, { positions: 131072, kvHeads: 4, ...DEFAULTS }, problems);
    const rotary = gemma3Rotary(data, sizes, problems);
    const windows = windowsOf(data, sizes, data.sliding_window_pattern, problems);
    return { ...laterConfig(data, sizes, {}), qkNorm: true, ...rotary, ...windows };
  },
});
