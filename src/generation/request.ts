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

export interface GenerationRequest {
  /** Token ids, at least one. */
  readonly prompt: readonly number[];
  /** Without one the bare backbone answers. Must stay undisposed until the answer is there. */
  readonly adapter?: Adapter;
  readonly options: SamplingOptions;
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
  /** Natural logarithm of each token's probability, before temperature, top-k and top-p. */
  readonly logprobs: number[];
  /** `stop`: an end-of-sequence token or a stop string; `length`: maxNewTokens; `cancelled`: by the signal. */
  readonly finishReason: "stop" | "length" | "cancelled";
  readonly route?: RouteReport;
  /** Milliseconds of the pass over the prompt (shared with what was batched beside it) and of all steps after. */
  readonly timing: { readonly prefillMs: number; readonly decodeMs: number; readonly steps: number };
}

/** One token of a stream. `text` is what can be shown now: whole characters, never part of a stop string. */
export interface StreamedToken {
  readonly token: number;
  readonly text: string;
  readonly logprob: number;
}

/** The same as a schema, for options that come from files, flags or the network. */
export const samplingOptionsSchema = z.strictObject({
  maxNewTokens: z.int().min(1).describe("most tokens to generate"),
  temperature: z.number().min(0).max(100).optional().describe("0: always the most likely token"),
  topK: z.int().min(1).optional().describe("draw from the k most likely tokens"),
  topP: z.number().gt(0).max(1).optional().describe("draw from the most likely tokens of this total probability"),
  seed: z.int().min(0).optional().describe("seed of the draws"),
  stop: z.array(z.string().min(1)).max(64).optional().describe("texts before which the answer ends"),
  beams: z.int().min(1).max(64).optional().describe("width of the beam search, 1 for none"),
  lengthPenalty: z.number().optional().describe("exponent of the length in a beam's score"),
  eosTokenIds: z.array(z.int().min(0)).max(1000).optional().describe("tokens that end the answer"),
});

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
  requests.forEach(({ prompt, options, adapter }, index) => {
    const label = requests.length === 1 ? "the prompt" : `prompt ${index}`;
    const parsed = samplingOptionsSchema.safeParse(options);
    for (const issue of parsed.error?.issues ?? []) {
      problems.add("SAMPLING_OPTIONS_INVALID", `options of ${label}: ${issue.path.join(".")}: ${issue.message}`);
    }
    if ((options.beams ?? 1) > 1 && (options.temperature ?? 0) > 0) {
      problems.add("SAMPLING_OPTIONS_INVALID", `options of ${label}: beams need a temperature of 0`);
    }
    if (options.stop?.length && !tokenizerOf(backbone)) {
      problems.add("TOKENIZER_MISSING", `options of ${label}: stop strings need a backbone with a tokenizer`);
    }
    checkTokens(problems, label, prompt, vocabSize);
    checkAdapter(problems, label, adapter, backbone);
    if (parsed.success && prompt.length + options.maxNewTokens > context) {
      problems.add(
        "PROMPT_TOO_LONG",
        `${label} has ${prompt.length} tokens, with ${options.maxNewTokens} new ones ${prompt.length + options.maxNewTokens}; ` +
          `the context holds ${context}: shorten the prompt or lower maxNewTokens`,
      );
    }
  });
  problems.throwIfAny("generation");
}

/** The backbone's tokenizer; undefined for random weights and for checkpoints that come without one. */
export function tokenizerOf(backbone: Backbone): Tokenizer | undefined {
  return backbone.hasTokenizer ? backbone.tokenizer : undefined;
}

/** The generator of a request's draws. */
export function randomOf({ seed }: SamplingOptions): Random {
  return new Random(deriveSeed(seed ?? Math.floor(Math.random() * 2 ** 32), "sampling"));
}
