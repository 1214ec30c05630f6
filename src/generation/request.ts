/** @file What is asked for and what comes back, and the checks a request passes before anything runs. */
import { z } from "zod";
import { deriveSeed, Random } from "../base/index.ts";
import type { Adapter } from "../methods/index.ts";
import type { Backbone, BackboneConfig, Tokenizer } from "../models/index.ts";
import { Problems } from "./errors.ts";

/** How one request is continued. */
export interface SamplingOptions {
  readonly maxNewTokens: number;
  /** 0 (default) always takes the most likely token. */
  readonly temperature?: number;
  /** Keep only the k most likely tokens. */
  readonly topK?: number;
  /** Keep only the most likely tokens that together have this probability. */
  readonly topP?: number;
  /** Keep only tokens at least this often as likely as the most likely one, after the two above. */
  readonly minP?: number;
  /** Taken from the logit of every token generated before, in [-2, 2]; OpenAI's definition. */
  readonly presencePenalty?: number;
  /** Taken from a token's logit for each time that it was generated before, in [-2, 2]; OpenAI's definition. */
  readonly frequencyPenalty?: number;
  /** Logits of tokens in prompt and answer are divided by it (multiplied where negative); Keskar et al., 2019. */
  readonly repetitionPenalty?: number;
  /** Added to the logits of token ids, in [-100, 100]: -100 all but forbids a token, 100 all but forces it. */
  readonly logitBias?: Readonly<Record<string, number>>;
  /** Also tell this many of the likeliest tokens at every position, at most 20. */
  readonly topLogprobs?: number;
  /** The same seed draws the same tokens, whatever runs beside it. Without one every call draws anew. */
  readonly seed?: number;
  /** The text ends before the first of these; they may lie across token borders. */
  readonly stop?: readonly string[];
  /** Width of a beam search; 1 (default) is none. Needs a temperature of 0. */
  readonly beams?: number;
  /** Beam search scores sum log p / length ** lengthPenalty; default 1. */
  readonly lengthPenalty?: number;
  /** Tokens that end the sequence instead of the backbone's own; empty to go on to `maxNewTokens`. */
  readonly eosTokenIds?: readonly number[];
}

/** A token that might have come, and the natural logarithm of its probability. */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/** A token of a prompt, given those before it, and what was likeliest in its place. */
export interface PromptLogprob extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

export interface GenerationRequest {
  /** Token ids, at least one. */
  readonly prompt: readonly number[];
  /** Without one the bare backbone answers. Must stay undisposed until the answer is there. */
  readonly adapter?: Adapter;
  readonly options: SamplingOptions;
  /**
   * Also tell the probability of every token of the prompt, with the `top` (0 to 20) likeliest in its place. A routed
   * method sees the whole prompt as its prompt. `maxNewTokens` may then be 0.
   */
  readonly promptLogprobs?: { readonly top: number };
  /**
   * Whom what is kept of its prompt may serve (`EngineOptions.prefixCache`): requests of the same scope, and without one
   * those without. Of what others sent not even the time tells anything then.
   */
  readonly scope?: string;
  /** Ends this request with what it has; other requests go on. */
  readonly signal?: AbortSignal;
}

/** What a routed method chose for one prompt. */
export interface RouteReport {
  /** Per layer the names of the active experts. */
  readonly experts: string[][];
  /** Per layer the router's probability of every expert, in the order of the method's `routing().experts`. */
  readonly probabilities: number[][];
}

export interface GenerationResult {
  /** New tokens, the end-of-sequence token or those of a stop string included. */
  readonly tokens: number[];
  /** Their text without special tokens and without the stop string; empty where the backbone has no tokenizer. */
  readonly text: string;
  /** Natural logarithm of each token's probability, before biases, penalties, temperature, top-k, top-p and min-p. */
  readonly logprobs: number[];
  /** The likeliest tokens at every position, most likely first, where `topLogprobs` asks for them. */
  readonly topLogprobs?: (readonly TokenLogprob[])[];
  /** Of every token of the prompt where asked for; the first, which follows nothing, has none. */
  readonly promptLogprobs?: readonly (PromptLogprob | null)[];
  /** `stop`: an end-of-sequence token or a stop string; `length`: maxNewTokens; `cancelled`: by the signal. */
  readonly finishReason: "stop" | "length" | "cancelled";
  readonly route?: RouteReport;
  /** Tokens of the prompt that were not read because the prefix cache had them; missing where none were. */
  readonly cachedTokens?: number;
  /** Milliseconds of the pass over the prompt (shared with what was batched beside it) and of all steps after. */
  readonly timing: { readonly prefillMs: number; readonly decodeMs: number; readonly steps: number };
}

/** One token of a stream. `text` is what can be shown now: whole characters, never part of a stop string. */
export interface StreamedToken {
  readonly token: number;
  readonly text: string;
  readonly logprob: number;
  /** See `GenerationResult.topLogprobs`. */
  readonly top?: readonly TokenLogprob[];
}

/** Most alternatives of a token that are told. */
const MAX_TOP = 20;

/** The same as a schema, for options that come from files, flags or the network. */
export const samplingOptionsSchema = z.strictObject({
  maxNewTokens: z
    .int()
    .min(0)
    .describe("most tokens to generate; 0 only where the prompt's probabilities are asked for"),
  temperature: z.number().min(0).max(100).optional().describe("0: always the most likely token"),
  topK: z.int().min(1).optional().describe("draw from the k most likely tokens"),
  topP: z.number().gt(0).max(1).optional().describe("draw from the most likely tokens of this total probability"),
  minP: z.number().min(0).max(1).optional().describe("draw from tokens at least this often as likely as the likeliest"),
  presencePenalty: z.number().min(-2).max(2).optional().describe("taken from the logits of tokens generated before"),
  frequencyPenalty: z.number().min(-2).max(2).optional().describe("the same, for each time that a token was generated"),
  repetitionPenalty: z.number().gt(0).max(100).optional().describe("divides logits of tokens in prompt and answer"),
  logitBias: z
    .record(z.string(), z.number().min(-100).max(100))
    .optional()
    .describe("added to the logits of token ids"),
  topLogprobs: z.int().min(0).max(MAX_TOP).optional().describe("likeliest tokens told at every position"),
  seed: z.int().min(0).optional().describe("seed of the draws"),
  stop: z.array(z.string().min(1)).max(64).optional().describe("texts before which the answer ends"),
  beams: z.int().min(1).max(64).optional().describe("width of the beam search, 1 for none"),
  lengthPenalty: z.number().optional().describe("exponent of the length in a beam's score"),
  eosTokenIds: z.array(z.int().min(0)).max(1000).optional().describe("tokens that end the answer"),
});

const topSchema = z.int().min(0).max(MAX_TOP);

/** A beam search takes the model's probabilities as they are. */
const notForBeams = [
  "presencePenalty",
  "frequencyPenalty",
  "repetitionPenalty",
  "logitBias",
  "minP",
  "topLogprobs",
] as const;

/** A config's identity: what decides whether an adapter's tensors fit a backbone. */
function sameShape(a: BackboneConfig, b: BackboneConfig): boolean {
  const fields = [
    "modelType",
    "hiddenSize",
    "intermediateSize",
    "numLayers",
    "numHeads",
    "numKvHeads",
    "headDim",
    "vocabSize",
  ] as const;
  return fields.every((field) => a[field] === b[field]);
}

/** Adds what is wrong with a prompt for this backbone; `label` says which prompt. */
export function checkTokens(
  problems: Problems,
  label: string,
  tokens: readonly number[],
  vocabSize: number,
  options: { allowEmpty?: boolean } = {},
): void {
  if (tokens.length === 0 && !options.allowEmpty) {
    problems.add("PROMPT_INVALID", `${label} is empty; give at least one token, e.g. the begin-of-sequence token`);
  }
  const bad = tokens.findIndex((token) => !Number.isInteger(token) || token < 0 || token >= vocabSize);
  if (bad >= 0) {
    problems.add(
      "PROMPT_INVALID",
      `${label} has ${String(tokens[bad])} at position ${bad}, but token ids are integers from 0 to ${vocabSize - 1}`,
    );
  }
}

/** @param unread tokens at the end that need no place */
export function checkLength(problems: Problems, label: string, length: number, context: number, unread = 0): void {
  if (length - unread > context) {
    problems.add("PROMPT_TOO_LONG", `${label} has ${length} tokens, the context holds ${context}`);
  }
}

export function checkAdapter(
  problems: Problems,
  label: string,
  adapter: Adapter | undefined,
  backbone: Backbone,
): void {
  if (adapter && !sameShape(adapter.backbone, backbone.config)) {
    problems.add(
      "ADAPTER_MISMATCH",
      `${label} uses an adapter of another backbone; load it for this backbone's config`,
    );
  }
}

/** Throws one `InputError` with every problem of every request. */
export function checkRequests(requests: readonly GenerationRequest[], backbone: Backbone, context: number): void {
  const problems = new Problems();
  const { vocabSize } = backbone.config;
  requests.forEach(({ prompt, options, adapter, promptLogprobs }, index) => {
    const label = requests.length === 1 ? "the prompt" : `prompt ${index}`;
    const wrong = (text: string): void => problems.add("SAMPLING_OPTIONS_INVALID", `options of ${label}: ${text}`);
    if (options.maxNewTokens === 0 && !promptLogprobs) {
      wrong("maxNewTokens: at least 1, unless the prompt's probabilities are asked for (promptLogprobs)");
    }
    const parsed = samplingOptionsSchema.safeParse(options);
    for (const issue of parsed.error?.issues ?? []) wrong(`${issue.path.join(".")}: ${issue.message}`);
    if (promptLogprobs && !topSchema.safeParse(promptLogprobs.top).success) {
      wrong(`promptLogprobs.top: an integer from 0 to ${MAX_TOP}`);
    }
    if ((options.beams ?? 1) > 1) {
      if ((options.temperature ?? 0) > 0) wrong("beams need a temperature of 0");
      const unused = notForBeams.filter((name) => options[name] !== undefined);
      if (unused.length > 0) wrong(`${unused.join(", ")}: not with beams`);
    }
    const outside = Object.keys(options.logitBias ?? {}).filter((id) => !/^\d+$/.test(id) || Number(id) >= vocabSize);
    if (outside.length > 0) wrong(`logitBias: ${outside.join(", ")}: token ids are from 0 to ${vocabSize - 1}`);
    if (options.stop?.length && !tokenizerOf(backbone)) {
      problems.add("TOKENIZER_MISSING", `options of ${label}: stop strings need a backbone with a tokenizer`);
    }
    checkTokens(problems, label, prompt, vocabSize);
    checkAdapter(problems, label, adapter, backbone);
    if (parsed.success && prompt.length + options.maxNewTokens > context) {
      problems.add(
        "PROMPT_TOO_LONG",
        `${label} has ${prompt.length} tokens, with ${options.maxNewTokens} new ones ${prompt.length + options.maxNewTokens}; ` +
          `the context holds ${context}: shorten the prompt or ask for fewer new tokens`,
      );
    }
  });
  problems.throwIfAny("generation");
}

/** The backbone's tokenizer; undefined for random weights and for checkpoints that come without one. */
export function tokenizerOf(backbone: Backbone): Tokenizer | undefined {
  return backbone.hasTokenizer ? backbone.tokenizer : undefined;
}

/** The seed of one of the choices of a request: the first is drawn as if it were alone. */
export function choiceSeed(seed: number, choice: number): number {
  return choice === 0 ? seed : deriveSeed(seed, `choice ${choice}`);
}

/** The generator of a request's draws. */
export function randomOf({ seed }: SamplingOptions): Random {
  return new Random(deriveSeed(seed ?? Math.floor(Math.random() * 2 ** 32), "sampling"));
}
