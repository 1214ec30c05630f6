/** @file A request on its way: its answers, drawn from one reading of the prompt, and how it ends. */
import type { Clock } from "../base/index.ts";
import type { Backbone, Tokenizer } from "../models/index.ts";
import { type BeamMoves, BeamSearch } from "./beam.ts";
import {
  choiceSeed,
  type GenerationRequest,
  type GenerationResult,
  type RouteReport,
  type StreamedToken,
  tokenizerOf,
} from "./request.ts";
import { Sequence } from "./sequence.ts";
import { TextStream } from "./text.ts";

/** A token of one of a job's answers, as it was chosen. */
export interface Emission {
  readonly job: Job;
  readonly choice: number;
  readonly token: StreamedToken;
}

/** What a job takes from its backbone. */
export interface JobContext {
  readonly tokenizer: Tokenizer | undefined;
  readonly eosTokenIds: readonly number[];
  /** Default: the machine's. */
  readonly clock?: Clock;
}

export function jobContext(backbone: Backbone): JobContext {
  return { tokenizer: tokenizerOf(backbone), eosTokenIds: backbone.config.eosTokenIds };
}

/** One request: an answer, `n` drawn ones, or the `n` best of a beam search. */
export class Job {
  readonly request: GenerationRequest;
  /** The answers. */
  readonly sequences: readonly Sequence[];
  readonly search: BeamSearch | undefined;
  /** Rows of a batch that it takes. */
  readonly width: number;
  /** Why it failed. */
  error: unknown;

  constructor(request: GenerationRequest, { tokenizer, eosTokenIds, clock }: JobContext, n = 1) {
    this.request = request;
    const { options } = request;
    const { beams = 1, seed = Math.floor(Math.random() * 2 ** 32) } = options;
    this.sequences = Array.from({ length: n }, (_, choice) => {
      const own = { ...request, options: { ...options, seed: choiceSeed(seed, choice) } };
      return new Sequence(own, tokenizer, eosTokenIds, clock);
    });
    if (beams > 1) {
      this.search = new BeamSearch({
        beams,
        lengthPenalty: options.lengthPenalty ?? 1,
        maxNewTokens: options.maxNewTokens,
        eosTokenIds: options.eosTokenIds ?? eosTokenIds,
        stops: options.stop?.length ? (tokens) => endsInStop(tokens, tokenizer, options.stop!) : undefined,
      });
    }
    this.width = this.search ? beams : n;
  }

  /** Nothing is left to do for it. */
  get over(): boolean {
    return this.error !== undefined || this.sequences.every(({ finished }) => finished);
  }

  get cancelled(): boolean {
    return this.request.signal?.aborted ?? false;
  }

  /** Positions the prompt and the longest answer take. The last token is never fed again. */
  get longest(): number {
    return this.request.prompt.length + Math.max(0, this.request.options.maxNewTokens - 1);
  }

  /** Whether the pass over its prompt that tells the prompt's probabilities is all it needs. */
  get isPromptOnly(): boolean {
    const { options, promptLogprobs } = this.request;
    return promptLogprobs !== undefined && (options.maxNewTokens === 0 || (options.maxNewTokens === 1 && !this.search));
  }

  /** Whether the row of an answer, or of a beam, is still needed. */
  needs(index: number): boolean {
    return !this.over && (this.search !== undefined || !this.sequences[index]!.finished);
  }

  /** Its prompt has been read. */
  read(prefillMs: number, route: RouteReport | undefined, reused = 0): void {
    for (const sequence of this.sequences) sequence.read(prefillMs, route, reused);
  }

  /** Chooses the next token of an answer; both are float32 [V]. */
  advance(choice: number, logits: Float32Array, logProbs: Float32Array): Emission {
    return { job: this, choice, token: this.sequences[choice]!.advance(logits, logProbs) };
  }

  /**
   * Goes on with its beam search.
   * @param logProbsOf float32 [V] of a beam's row
   * @returns what its rows go on with, or all tokens when the search is over
   */
  advanceSearch(logProbsOf: (row: number) => Float32Array): BeamMoves | Emission[] {
    return this.search!.advance(logProbsOf) ?? this.#results();
  }

  /** Ends it with what it has. */
  cancel(): void {
    if (this.search && !this.over) this.#results();
    for (const sequence of this.sequences) sequence.cancel();
  }

  fail(error: unknown): void {
    if (!this.over) this.error = error;
  }

  results(): GenerationResult[] {
    return this.sequences.map((sequence) => sequence.result());
  }

  /** Hands the best hypotheses to the answers. */
  #results(): Emission[] {
    const best = this.search!.results(this.sequences.length);
    return this.sequences.flatMap((sequence, choice) => {
      const { tokens, logprobs } = best[choice] ?? { tokens: [], logprobs: [] };
      const emissions = tokens.map((token, index) => ({
        job: this,
        choice,
        token: sequence.accept(token, logprobs[index]!),
      }));
      sequence.cancel(); // without effect unless the search was cut short
      return emissions;
    });
  }
}

function endsInStop(tokens: readonly number[], tokenizer: Tokenizer | undefined, stops: readonly string[]): boolean {
  const text = new TextStream(tokenizer?.decodeStream({ continuation: true }), stops);
  for (const token of tokens) text.push(token);
  return text.stopped;
}
