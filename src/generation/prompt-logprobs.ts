/** @file Probabilities of the tokens of prompts, and the one token after them that the same pass can tell. */
import { logitsNotFinite } from "./errors.ts";
import type { Shared } from "./prefill.ts";
import type { StreamedToken } from "./request.ts";
import { scoreSequences } from "./score.ts";
import { now, type Sequence } from "./sequence.ts";

/** Whether the pass over the prompt is all that a request needs: what evaluation harnesses ask for. */
function isWhole({ request: { options } }: Sequence): boolean {
  return options.maxNewTokens === 0 || (options.maxNewTokens === 1 && (options.beams ?? 1) === 1);
}

/**
 * Reads the prompts of sequences of one adapter that ask for the probabilities of their prompts. Those that want at most
 * one new token are finished then; the tokens are returned, in the order of `sequences`.
 *
 * @throws GenerationError LOGITS_NOT_FINITE; RuntimeError RUN_CANCELLED
 */
export async function readPromptLogprobs(
  shared: Shared,
  sequences: readonly Sequence[],
  signal?: AbortSignal,
): Promise<(StreamedToken | undefined)[]> {
  const started = now();
  const scores = await scoreSequences(
    shared,
    sequences[0]?.request.adapter,
    sequences.map((sequence) => {
      const { prompt, options, promptLogprobs } = sequence.request;
      const last = isWhole(sequence) && options.maxNewTokens > 0;
      return { tokens: prompt, promptLength: prompt.length, from: 1, last, top: promptLogprobs?.top ?? 0 };
    }),
    { signal },
  );
  const ended = now();
  return sequences.map((sequence, index) => {
    const { logprobs, tops, last, route } = scores[index]!;
    if (logprobs.some(Number.isNaN)) throw logitsNotFinite();
    const { prompt } = sequence.request;
    sequence.promptLogprobs = [
      null,
      ...logprobs.map((logprob, i) => ({ token: prompt[i + 1]!, logprob, top: tops[i]! })),
    ];
    if (!isWhole(sequence)) return undefined;
    sequence.read(ended - started, route);
    if (last) return sequence.advance(last.logits, last.logProbs);
    sequence.finish();
    return undefined;
  });
}
