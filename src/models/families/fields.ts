/** @file Fields of config.json that families share, checked one by one, and what follows from them. */
import { z } from "zod";
import { InputError } from "../../base/index.ts";
import { type BackboneConfig, tokenIdSchema, tokenIds, tokenIdsSchema } from "../config.ts";

/** A size; the bounds are far above every published model and keep a crafted config from asking for the impossible. */
const size = (most: number) =>
  z
    .number({ error: "is missing or not a number" })
    .int("must be an integer")
    .min(1, "must be at least 1")
    .max(most, `must be at most ${most}`);

/** An option that changes the computation, of which only the usual value is implemented. */
export const only = <T extends string | number | boolean>(value: T) =>
  z
    .unknown()
    .refine((given) => given === undefined || given === null || given === value, {
      error: ({ input }) => `${JSON.stringify(input)} is not supported, only ${JSON.stringify(value)}`,
    })
    .optional();

export const absent = z
  .unknown()
  .refine((given) => given === undefined || given === null, { error: "is not supported" })
  .optional();

/** `rope_scaling` of transformers 4 (whose kind was first called `type`) and `rope_parameters` of transformers 5. */
const rope = z
  .looseObject({
    rope_type: only("default"),
    type: only("default"),
    rope_theta: z.number().positive().optional(),
    partial_rotary_factor: only(1),
  })
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
  max_position_embeddings: size(2 ** 24).default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().optional(),
  rope_scaling: rope,
  rope_parameters: rope,
  tie_word_embeddings: z.boolean().nullish(),
  partial_rotary_factor: only(1),
  quantization_config: absent,
  bos_token_id: tokenIdSchema,
  eos_token_id: tokenIdsSchema,
  pad_token_id: tokenIdSchema,
};

type CommonFields = z.output<z.ZodObject<typeof commonFields>>;

/** Checks the fields of a config.json. Throws InputError that lists all that is wrong. */
export function readFields<S extends z.ZodType>(schema: S, raw: unknown, where: string): z.output<S> {
  const result = schema.safeParse(raw);
  if (result.success) return result.data;
  const problems = result.error.issues.map((issue) => `${issue.path.map(String).join(".")}: ${issue.message}`);
  throw new InputError("CONFIG_INVALID", where, problems);
}

/** What the fields of every family say, in the project's names. Throws InputError when they contradict each other. */
export function commonConfig(data: CommonFields, where: string): Omit<BackboneConfig, "modelType" | "hiddenAct"> {
  const problems: string[] = [];
  const heads = data.num_attention_heads;
  const kvHeads = data.num_key_value_heads ?? heads;
  if (heads % kvHeads !== 0) {
    problems.push(`num_key_value_heads: ${kvHeads} does not divide num_attention_heads ${heads}`);
  }
  const headDim = data.head_dim ?? data.hidden_size / heads;
  if (!Number.isInteger(headDim)) {
    problems.push(
      `num_attention_heads: ${heads} does not divide hidden_size ${data.hidden_size}, and there is no head_dim`,
    );
  } else if (headDim % 2 !== 0) {
    problems.push(`head_dim: ${headDim} is odd; rotary embeddings need an even one`);
  }
  const theta = data.rope_parameters?.rope_theta ?? data.rope_scaling?.rope_theta ?? data.rope_theta ?? 10000;
  if (data.rope_theta !== undefined && data.rope_theta !== theta) {
    problems.push(`rope_theta: ${data.rope_theta} contradicts rope_parameters.rope_theta ${theta}`);
  }
  const ids = tokenIds(data.bos_token_id, data.eos_token_id, data.pad_token_id);
  for (const id of ids.eosTokenIds) {
    if (id >= data.vocab_size) problems.push(`eos_token_id: ${id} is outside the vocabulary of ${data.vocab_size}`);
  }
  if (problems.length > 0) throw new InputError("CONFIG_INVALID", where, problems);
  return {
    hiddenSize: data.hidden_size,
    intermediateSize: data.intermediate_size,
    numLayers: data.num_hidden_layers,
    numHeads: heads,
    numKvHeads: kvHeads,
    headDim,
    vocabSize: data.vocab_size,
    rmsNormEps: data.rms_norm_eps,
    ropeTheta: theta,
    maxPositions: data.max_position_embeddings,
    tieWordEmbeddings: data.tie_word_embeddings ?? false,
    ...ids,
  };
}
