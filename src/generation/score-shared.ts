/** @file Probabilities of several continuations of one prompt: the prompt is read once, the continuations go on from its cache. */
import type { Adapter } from "../methods/index.ts";
import { Batch } from "./batch.ts";
import { PREFILL_TOKENS, type Shared } from "./shared.ts";

/** A prompt and what may follow it. */
export interface PromptGroup {
  readonly prompt: readonly number[];
  /** None is empty. */
  readonly continuations: readonly (readonly number[])[];
}

export interface ContinuationScores {
  readonly logprobs: number[];
  readonly greedy: boolean;
}

/** Most sequences that decode together: they hold a row of logits each. */
const ROWS = 64;

/**
 * Whether reading the prompt once is less work. Passes over one token of many sequences take each about twice what a
 * token costs in a pass over whole sequences; last tokens are never fed.
 */
export function paysToShare({ prompt, continuations }: PromptGroup): boolean {
  const fed = continuations.reduce((sum, tokens) => sum + tokens.length - 1, 0);
  return (continuations.length - 1) * prompt.length > fed;
}

/** Cache rows of a group: one for each continuation that goes beyond a token, at least that of the prompt. */
const rowsOf = (group: PromptGroup): number => Math.max(1, group.continuations.filter((c) => c.length > 1).length);
const longestOf = ({ prompt, continuations }: PromptGroup): number =>
  prompt.length + Math.max(...continuations.map((tokens) => tokens.length - 1));

/** Cuts groups, alike in length, into batches that the limits on rows and cached tokens allow. */
export function batchesOf(groups: readonly PromptGroup[], limit = PREFILL_TOKENS): number[][] {
  const order = groups.map((_, index) => index).sort((a, b) => longestOf(groups[a]!) - longestOf(groups[b]!));
  const batches: number[][] = [];
  let rows = 0;
  for (const index of order) {
    const group = groups[index]!;
    const more = rows + rowsOf(group);
    if (batches.length > 0 && more <= ROWS && more * longestOf(group) <= limit) {
      batches.at(-1)!.push(index);
      rows = more;
    } else {
      batches.push([index]);
      rows = rowsOf(group);
    }
  }
  return batches;
}

/** A continuation under way: what it has, and how many of its tokens have been scored. */
interface Live {
  readonly tokens: readonly number[];
  readonly scores: { logprobs: number[]; greedy: boolean };
  next: number;
}

/** Scores the groups of one batch; results by group and continuation. */
export async function scoreGroups(
  shared: Shared,
  adapter: Adapter | undefined,
  groups: readonly PromptGroup[],
  signal?: AbortSignal,
  scope?: string,
): Promise<ContinuationScores[][]> {
  const rows = groups.reduce((sum, group) => sum + rowsOf(group), 0);
  using batch = new Batch(shared, rows, {
    prompt: Math.max(...groups.map(({ prompt }) => prompt.length)),
    longest: Math.max(...groups.map(longestOf)),
  });
  await batch.admit(
    groups.map(({ prompt }) => ({ tokens: prompt, adapter, scope })),
    signal,
  );
  const live: (Live | undefined)[] = groups.map(() => undefined); // by row
  const results = groups.map(({ continuations }, row) => {
    const lives = continuations.map((tokens): Live => ({ tokens, scores: { logprobs: [], greedy: true }, next: 0 }));
    for (const one of lives) take(one, batch.logProbsOf(row));
    return lives;
  });
  // The first that goes on takes the prompt's own row, the others copies of it.
  for (const [row, lives] of results.entries()) {
    for (const one of lives) {
      if (one.next === one.tokens.length) continue;
      if (live[row]) {
        batch.copyRow(row, live.length, 0);
        live.push(one);
      } else live[row] = one;
    }
  }
  for (;;) {
    for (let row = live.length - 1; row >= 0; row--) {
      const one = live[row];
      if (one && one.next < one.tokens.length) continue;
      batch.drop(row);
      const last = live.pop();
      if (row < live.length) live[row] = last;
    }
    if (live.length === 0) break;
    await batch.step(
      live.map((one) => one!.tokens[one!.next - 1]!),
      signal,
    );
    for (const [row, one] of live.entries()) take(one!, batch.logProbsOf(row));
  }
  return results.map((lives) => lives.map(({ scores }) => scores));
}

/** Scores the next token of a continuation by the distribution [V] after those before it. */
function take(one: Live, logProbs: Float32Array): void {
  const token = one.tokens[one.next++]!;
  const own = logProbs[token]!;
  one.scores.logprobs.push(own);
  // The first of equals is the likeliest, as an arg-max has it.
  for (let id = 0; id < logProbs.length && one.scores.greedy; id++) {
    if (logProbs[id]! > own || (id < token && logProbs[id] === own)) one.scores.greedy = false;
  }
}
