/** @file Fields of config.json that families share, checked one by one, and what follows from them. */
import { z } from "zod";
import { type BackboneConfig, tokenIdSchema, tokenIds, tokenIdsSchema } from "../config.ts";
import { type RopeFields, readRope, ropeSchema, scaledPositions } from "./rope.ts";

/** A size; the bounds are far above every published model and keep a crafted config from asking for the impossible. */
export const size = (most: number) =>
  z
    .number({ error: "is missing or not a number" })
    .int("must be an integer")
    .min(1, "must be at least 1")
    .max(most, `must be at most ${most}`);

/** An option that changes the computation, of which only the usual value (or values that mean the same) is implemented. */
export const only = <T extends string | number | boolean>(...values: readonly [T, ...T[]]) =>
  z
    .unknown()
    .refine((given) => given === undefined || given === null || values.includes(given as T), {
      error: ({ input }) =>
        `${JSON.stringify(input)} is not supported, only ${values.map((value) => JSON.stringify(value)).join(" or ")}`,
    })
    .optional();

export const absent = z
  .unknown()
  .refine((given) => given === undefined || given === null, { error: "is not supported" })
  .optional();

/** A positive number that switches something on; null or missing: off. */
export const optionalNumber = z.number({ error: "must be a number" }).positive("must be positive").nullish();

/** A sliding window as transformers writes it. */
export const window = size(2 ** 24).nullish();

/** Kinds of attention of each layer, as transformers 4.53 and later write them. */
export const layerTypes = z
  .array(
    z.enum(["full_attention", "sliding_attention"], {
      error: ({ input }) => `${JSON.stringify(input)} is not supported, only full_attention and sliding_attention`,
    }),
  )
  .nullish();

/** Fields of every family. */
export const commonFields = {
  hidden_size: size(2 ** 17),
  intermediate_size: size(2 ** 20),
  num_hidden_layers: size(2 ** 10),
  num_attention_heads: size(2 ** 12),
  num_key_value_heads: size(2 ** 12).nullish(),
  head_dim: size(2 ** 12).nullish(),
  vocab_size: size(2 ** 24),
  max_position_embeddings: size(2 ** 24).optional(),
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().optional(),
  rope_scaling: ropeSchema.nullish(),
  rope_parameters: ropeSchema.nullish(),
  partial_rotary_factor: only(1),
  tie_word_embeddings: z.boolean().nullish(),
  quantization_config: absent,
  is_causal: only(true),
  bos_token_id: tokenIdSchema,
  eos_token_id: tokenIdsSchema,
  pad_token_id: tokenIdSchema,
};

type CommonFields = Omit<
  z.output<z.ZodObject<typeof commonFields>>,
  "partial_rotary_factor" | "rope_scaling" | "rope_parameters"
>;

/** Where transformers' config class of a family has a default of its own. */
export interface Defaults {
  readonly positions: number;
  readonly headDim?: number;
  readonly kvHeads?: number;
  readonly tied?: boolean;
  readonly bos?: number;
  readonly eos?: number;
  readonly pad?: number;
}

/** Sizes and special tokens, in the project's names; problems are added to the list. */
export function readSizes(data: CommonFields, defaults: Defaults, problems: string[]) {
  const heads = data.num_attention_heads;
  const kvHeads = data.num_key_value_heads ?? defaults.kvHeads ?? heads;
  if (heads % kvHeads !== 0) {
    problems.push(`num_key_value_heads: ${kvHeads} does not divide num_attention_heads ${heads}`);
  }
  const headDim = data.head_dim ?? defaults.headDim ?? data.hidden_size / heads;
  if (!Number.isInteger(headDim)) {
    problems.push(
      `num_attention_heads: ${heads} does not divide hidden_size ${data.hidden_size}, and there is no head_dim`,
    );
  } else if (headDim % 2 !== 0) {
    problems.push(`head_dim: ${headDim} is odd; rotary embeddings need an even one`);
  }
  // A field that is null says that there is none; one that is missing, what transformers' class says.
  const id = <T>(given: T | undefined, otherwise: number | undefined): T | number | undefined =>
    given === undefined ? otherwise : given;
  const ids = tokenIds(
    id(data.bos_token_id, defaults.bos),
    id(data.eos_token_id, defaults.eos),
    id(data.pad_token_id, defaults.pad),
  );
  for (const eos of ids.eosTokenIds) {
    if (eos >= data.vocab_size) problems.push(`eos_token_id: ${eos} is outside the vocabulary of ${data.vocab_size}`);
  }
  return {
    hiddenSize: data.hidden_size,
    intermediateSize: data.intermediate_size,
    numLayers: data.num_hidden_layers,
    numHeads: heads,
    numKvHeads: kvHeads,
    headDim,
    vocabSize: data.vocab_size,
    rmsNormEps: data.rms_norm_eps,
    maxPositions: data.max_position_embeddings ?? defaults.positions,
    tieWordEmbeddings: data.tie_word_embeddings ?? defaults.tied ?? false,
    ...ids,
  } satisfies Partial<BackboneConfig>;
}

interface RotaryFields {
  readonly rope_theta?: number | undefined;
  readonly rope_scaling?: RopeFields | null | undefined;
  readonly rope_parameters?: RopeFields | null | undefined;
}

/** How one kind of rotary positions serves all layers. */
export function readRotary(
  data: RotaryFields,
  sizes: { readonly maxPositions: number; readonly headDim: number },
  problems: string[],
  options: {
    readonly theta?: number;
    readonly original?: number;
    readonly rotaryDim?: number;
    readonly aliases?: Readonly<Record<string, string>>;
  } = {},
): Pick<BackboneConfig, "ropeTheta" | "ropeScaling" | "maxPositions"> {
  const { rope_scaling: four, rope_parameters: five } = data;
  const theta = five?.rope_theta ?? four?.rope_theta ?? data.rope_theta ?? options.theta ?? 10000;
  if (data.rope_theta !== undefined && data.rope_theta !== theta) {
    problems.push(`rope_theta: ${data.rope_theta} contradicts rope_parameters.rope_theta ${theta}`);
  }
  for (const [field, fields] of Object.entries({ rope_scaling: four, rope_parameters: five })) {
    const partial = fields?.partial_rotary_factor ?? 1;
    if (partial !== 1 && options.rotaryDim === undefined) {
      problems.push(`${field}.partial_rotary_factor: ${partial} is not supported, only 1`);
    }
  }
  const field = four ? "rope_scaling" : "rope_parameters";
  const { scaling } = readRope(
    four ?? five ?? {},
    {
      field,
      theta,
      positions: sizes.maxPositions,
      original: options.original,
      rotaryDim: options.rotaryDim ?? sizes.headDim,
      ...(options.aliases && { aliases: options.aliases }),
    },
    problems,
  );
  return {
    ropeTheta: theta,
    ...(scaling && { ropeScaling: scaling }),
    maxPositions: scaledPositions(scaling, sizes.maxPositions),
  };
}

/** The layers that `layer_types` names, or that follow from older fields, with their window. */
export function slidingWindow(
  given: z.output<typeof layerTypes>,
  size: number | null | undefined,
  numLayers: number,
  isSliding: (layer: number) => boolean,
  problems: string[],
): Pick<BackboneConfig, "slidingWindow"> {
  if (given && given.length !== numLayers) {
    problems.push(`layer_types: has ${given.length} entries for ${numLayers} layers`);
  }
  const sliding = given ? (layer: number) => given[layer] === "sliding_attention" : isSliding;
  const layers = Array.from({ length: numLayers }, (_, layer) => layer).filter(sliding);
  if (layers.length === 0) return {};
  if (size === null || size === undefined) {
    problems.push("sliding_window: is missing, and layer_types has layers with one");
    return {};
  }
  return { slidingWindow: { size, layers } };
}

/** Biases on all of attention's modules, as `attention_bias` switches them on. */
export const ATTENTION_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"];
export const MLP_MODULES = ["gate_proj", "up_proj", "down_proj"];
