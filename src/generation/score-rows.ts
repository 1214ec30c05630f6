/** @file Scoring of continuations, cut into pieces of work that are done one after another, or in turns with other work. */
import type { Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Problems } from "./errors.ts";
import { groupBy } from "./group.ts";
import { checkAdapter, checkLength, checkTokens } from "./request.ts";
import { scoreSequences, sequenceBatches } from "./score.ts";
import { batchesOf, type PromptGroup, paysToShare, scoreGroups } from "./score-shared.ts";
import { PREFILL_TOKENS, type Shared } from "./shared.ts";

export interface ScoreRow {
  readonly prompt: readonly number[];
  readonly continuation: readonly number[];
}

export interface ScoreResult {
  /** Natural logarithm of each continuation token's probability. */
  readonly logprobs: number[];
  /** Every continuation token is the most likely one. */
  readonly greedy: boolean;
}

/** A piece of the work: a few runs of the model at most. */
export interface ScorePiece {
  /** Rows that are finished with it. */
  readonly rows: number;
  /** Tokens that it reads. */
  readonly tokens: number;
  run(signal?: AbortSignal): Promise<void>;
}

/** Throws one `InputError` with everything that is wrong. */
export function checkScoreRows(
  rows: readonly ScoreRow[],
  adapter: Adapter | undefined,
  backbone: Backbone,
  context: number,
): void {
  const problems = new Problems();
  const { vocabSize } = backbone.config;
  checkAdapter(problems, "the score request", adapter, backbone);
  for (const [index, { prompt, continuation }] of rows.entries()) {
    checkTokens(problems, `prompt ${index}`, prompt, vocabSize);
    checkTokens(problems, `continuation ${index}`, continuation, vocabSize, { allowEmpty: true });
    // The last token is asked for and never read.
    const unread = Math.min(1, continuation.length);
    checkLength(problems, `row ${index}`, prompt.length + continuation.length, context, unread);
  }
  problems.throwIfAny("score");
}

/** What scoring rows takes; `results` is whole when every piece has run. */
export class ScorePlan {
  readonly results: ScoreResult[];
  readonly pieces: readonly ScorePiece[];

  /**
   * Continuations of one prompt, the choices of a question, share the pass over it where that is less work.
   * @param limit most tokens, padding included, that one run reads; a longer row is read alone
   * @param scope see `GenerationRequest.scope`
   */
  constructor(
    shared: Shared,
    rows: readonly ScoreRow[],
    adapter: Adapter | undefined,
    limit = PREFILL_TOKENS,
    scope?: string,
  ) {
    // An empty continuation is certain.
    this.results = rows.map(() => ({ logprobs: [], greedy: true }));
    const groups: (PromptGroup & { readonly rows: readonly number[] })[] = [];
    const single: number[] = [];
    const wanted = [...rows.keys()].filter((row) => rows[row]!.continuation.length > 0);
    for (const alike of groupBy(wanted, (row) => rows[row]!.prompt.join()).values()) {
      const continuations = alike.map((row) => rows[row]!.continuation);
      const group = { prompt: rows[alike[0]!]!.prompt, continuations, rows: alike };
      if (alike.length > 1 && paysToShare(group)) groups.push(group);
      else single.push(...alike);
    }
    const sequences = single.map((row) => {
      const { prompt, continuation } = rows[row]!;
      return { tokens: [...prompt, ...continuation], promptLength: prompt.length, from: prompt.length };
    });
    this.pieces = [
      ...batchesOf(groups, limit).map((indices): ScorePiece => {
        const these = indices.map((index) => groups[index]!);
        const tokensOf = ({ prompt, continuations }: PromptGroup) =>
          continuations.reduce((sum, tokens) => sum + tokens.length, prompt.length);
        return {
          rows: these.reduce((sum, group) => sum + group.rows.length, 0),
          tokens: these.reduce((sum, group) => sum + tokensOf(group), 0),
          run: async (signal) => {
            const scores = await scoreGroups(shared, adapter, these, signal, scope);
            for (const [g, group] of these.entries()) {
              for (const [i, row] of group.rows.entries()) this.results[row] = scores[g]![i]!;
            }
          },
        };
      }),
      ...sequenceBatches(sequences, limit).map((indices): ScorePiece => {
        const these = indices.map((index) => sequences[index]!);
        return {
          rows: these.length,
          tokens: these.reduce((sum, { tokens }) => sum + tokens.length, 0),
          run: async (signal) => {
            const scores = await scoreSequences(shared, adapter, these, signal, scope);
            for (const [i, { logprobs, greedy }] of scores.entries()) {
              this.results[single[indices[i]!]!] = { logprobs, greedy };
            }
          },
        };
      }),
    ];
  }
}
