/** @file Probabilities of the tokens of prompts, and the one token after them that the same pass can tell. */
import { machineClock } from "../base/index.ts";
import { logitsNotFinite } from "./errors.ts";
import { groupBy } from "./group.ts";
import type { Emission, Job } from "./job.ts";
import { scoreSequences } from "./score.ts";
import type { Shared } from "./shared.ts";

/**
 * Reads the prompts of jobs of one adapter that ask for the probabilities of their prompts. Those that want at most one
 * new token, as evaluation harnesses do, are over then; what is wrong with one job is its `error`.
 *
 * @throws RuntimeError RUN_CANCELLED
 */
export async function readPromptLogprobs(
  shared: Shared,
  jobs: readonly Job[],
  signal?: AbortSignal,
): Promise<Emission[]> {
  const emissions: Emission[] = [];
  for (const alike of groupBy(jobs, ({ request }) => request.scope).values()) {
    emissions.push(...(await readOfScope(shared, alike, signal)));
  }
  return emissions;
}

async function readOfScope(shared: Shared, jobs: readonly Job[], signal: AbortSignal | undefined): Promise<Emission[]> {
  const started = machineClock.now();
  const rows = jobs.map(({ request: { prompt, options, promptLogprobs }, isPromptOnly }) => ({
    tokens: prompt,
    promptLength: prompt.length,
    from: 1,
    last: isPromptOnly && options.maxNewTokens > 0,
    top: promptLogprobs?.top ?? 0,
  }));
  const { adapter, scope } = jobs[0]!.request;
  const scores = await scoreSequences(shared, adapter, rows, signal, scope);
  const ended = machineClock.now();
  return jobs.flatMap((job, index) => {
    const { logprobs, tops, last, route } = scores[index]!;
    if (job.over) return []; // cancelled meanwhile
    if (logprobs.some(Number.isNaN)) {
      job.fail(logitsNotFinite());
      return [];
    }
    const { prompt } = job.request;
    const told = [null, ...logprobs.map((logprob, i) => ({ token: prompt[i + 1]!, logprob, top: tops[i]! }))];
    for (const sequence of job.sequences) sequence.promptLogprobs = told;
    if (!job.isPromptOnly) return [];
    job.read(ended - started, route);
    if (last) return job.sequences.map((_, choice) => job.advance(choice, last.logits, last.logProbs));
    for (const sequence of job.sequences) sequence.finish();
    return [];
  });
}
