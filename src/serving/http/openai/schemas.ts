/** @file Bodies of OpenAI's requests, with what vLLM and milora add. */
import { z } from "zod";
import { RequestError } from "../errors.ts";
import { jsonSchema } from "../openapi.ts";

const whole = (least: number, most: number) => z.int().min(least).max(most);

/** Before a schema that looks at every entry: more of them than this are not looked at. */
const few = <S extends z.ZodType>(most: number, schema: S) =>
  z
    .unknown()
    .refine((value) => typeof value !== "object" || value === null || Object.keys(value).length <= most, {
      error: `has more than ${most} entries`,
      abort: true,
    })
    .meta(jsonSchema(schema))
    .pipe(schema);

const shared = {
  model: z.string().min(1).max(300).describe("an adapter, `base:adapter`, or the backbone's name"),
  stream: z.boolean().default(false).describe("send tokens as server-sent events"),
  stream_options: z
    .object({ include_usage: z.boolean().optional() })
    .optional()
    .describe("include_usage: one more event at the end, with the usage"),
  n: whole(1, 128).default(1).describe("answers to each prompt"),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1)).max(64)])
    .optional()
    .describe("texts before which an answer ends"),
  seed: whole(0, Number.MAX_SAFE_INTEGER).optional().describe("the same seed draws the same tokens"),
  temperature: z.number().min(0).max(100).optional().describe("0 takes the likeliest token; default 1"),
  top_p: z.number().gt(0).max(1).optional().describe("draw from the likeliest tokens of this total probability"),
  top_k: whole(-1, 1_000_000).optional().describe("draw from the k likeliest tokens; -1 or 0 for all"),
  min_p: z.number().min(0).max(1).optional().describe("only tokens this often as likely as the likeliest"),
  presence_penalty: z.number().min(-2).max(2).optional(),
  frequency_penalty: z.number().min(-2).max(2).optional(),
  repetition_penalty: z.number().gt(0).max(100).optional(),
  logit_bias: few(
    4096,
    z.record(z.string().regex(/^\d{1,10}$/, "must be token ids"), z.number().min(-100).max(100)),
  ).optional(),
  stop_token_ids: z
    .array(whole(0, 10_000_000))
    .max(1000)
    .optional()
    .describe("tokens that end an answer, besides the model's"),
  ignore_eos: z.boolean().optional().describe("go on to max_tokens"),
  use_beam_search: z.boolean().optional().describe("search with beam_width (or best_of, or n) beams"),
  beam_width: whole(1, 64).optional().describe("beams; more than 1 is a beam search"),
  best_of: whole(1, 128).optional().describe("answers that are drawn, of which the n likeliest per token are returned"),
  length_penalty: z.number().min(-10).max(10).optional().describe("exponent of the length in a beam's score"),
  return_tokens_as_token_ids: z.boolean().optional().describe("name tokens `token_id:N` in logprobs"),
  user: z.string().optional(),
  x_milora: z
    .strictObject({ routes: z.boolean().optional().describe("tell which experts the prompt chose in each layer") })
    .optional(),
};

/** Checked at once, for one problem at most: zod would tell of each of millions. */
const isTokens = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((token) => Number.isSafeInteger(token) && token >= 0);

type PromptBody = string | number[] | string[] | number[][];
const isPrompt = (value: unknown): value is PromptBody => {
  if (typeof value === "string" || isTokens(value)) return true;
  return Array.isArray(value) && (value.every((one) => typeof one === "string") || value.every(isTokens));
};

const text = { type: "string" };
const tokens = { type: "array", items: { type: "integer", minimum: 0 } };

export const completionSchema = z
  .object({
    ...shared,
    prompt: z.custom<PromptBody>(isPrompt, "must be a text, a list of token ids, or a list of either").meta({
      description: "a text, token ids, or a list of either",
      anyOf: [text, tokens, { type: "array", items: text }, { type: "array", items: tokens }],
    }),
    max_tokens: whole(0, 10_000_000).default(16).describe("most new tokens of an answer"),
    logprobs: whole(0, 20).optional().describe("tell the probabilities of tokens and of this many of the likeliest"),
    echo: z.boolean().default(false).describe("give the prompt back in front of the answer"),
    add_special_tokens: z.boolean().default(true).describe("put the tokenizer's own tokens around a text"),
  })
  .meta({ title: "CompletionRequest" });

export type CompletionBody = z.output<typeof completionSchema>;

const MOST_PARTS = 1000;
const textPart = z.object({ type: z.literal("text", "only text is understood"), text: z.string() });

const message = z.looseObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool"]),
  content: z
    .union([z.string(), z.array(textPart).max(MOST_PARTS)], { error: "must be a text or a list of text parts" })
    .nullish(),
  name: z.string().optional(),
});

export const chatSchema = z
  .object({
    ...shared,
    messages: z.array(message).min(1).max(10_000),
    max_tokens: whole(1, 10_000_000).optional().describe("the older name of max_completion_tokens"),
    max_completion_tokens: whole(1, 10_000_000)
      .optional()
      .describe("most new tokens of an answer; default what the context leaves"),
    logprobs: z.boolean().default(false).describe("tell the probabilities of tokens"),
    top_logprobs: whole(0, 20).optional().describe("tell this many of the likeliest at every position"),
    add_generation_prompt: z.boolean().default(true),
    chat_template_kwargs: few(64, z.record(z.string(), z.unknown()))
      .optional()
      .describe("variables of the chat template"),
  })
  .meta({ title: "ChatCompletionRequest" });

export type ChatBody = z.output<typeof chatSchema>;
export type SharedBody = Pick<ChatBody, keyof typeof shared>;

type Empty = (value: unknown) => boolean;
const isOff: Empty = (value) => value === false;
const isNoList: Empty = (value) => Array.isArray(value) && value.length === 0;
const never: Empty = () => false;

/** Fields of OpenAI and vLLM that would change the answer and are not done here, with the value that asks for nothing. */
const REFUSED: Readonly<Record<string, Empty>> = {
  suffix: (value) => value === "",
  tools: isNoList,
  tool_choice: (value) => value === "none" || value === "auto",
  functions: isNoList,
  function_call: (value) => value === "none" || value === "auto",
  response_format: (value) => (value as { type?: unknown }).type === "text",
  structured_outputs: never,
  guided_json: never,
  guided_regex: never,
  guided_choice: never,
  guided_grammar: never,
  modalities: (value) => Array.isArray(value) && value.every((kind) => kind === "text"),
  audio: never,
  prompt_embeds: never,
  min_tokens: (value) => value === 0,
  bad_words: isNoList,
  allowed_token_ids: isNoList,
  truncate_prompt_tokens: never,
  include_stop_str_in_output: isOff,
  skip_special_tokens: (value) => value === true,
  chat_template: never,
  continue_final_message: isOff,
  documents: isNoList,
  prediction: never,
};

/**
 * A body without the fields that are null, which OpenAI's clients send for "not given".
 * @throws RequestError for fields that would change the answer and cannot be done
 */
export function withoutNulls(body: unknown): unknown {
  if (body === null || typeof body !== "object" || Array.isArray(body)) {
    throw new RequestError("the body must be a JSON object (content-type: application/json)");
  }
  const given = Object.entries(body).filter(([, value]) => value !== null);
  const refused = given.filter(([name, value]) => Object.hasOwn(REFUSED, name) && !REFUSED[name]!(value));
  if (refused.length) {
    const names = refused.map(([name]) => name);
    throw new RequestError(
      names.map((name) => `${name}: is not supported; leave it out`),
      names[0],
    );
  }
  return Object.fromEntries(given);
}
