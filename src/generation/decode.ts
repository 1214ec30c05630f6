/** @file The loops that drive a batch: sampling with rows that come and go, and beam search with groups of rows. */
import type { Tokenizer } from "../models/index.ts";
import { RuntimeError } from "../runtime/index.ts";
import type { Batch } from "./batch.ts";
import { BeamSearch } from "./beam.ts";
import type { StreamedToken } from "./request.ts";
import { now, type Sequence } from "./sequence.ts";
import { TextStream } from "./text.ts";

/** A token of a sequence, as it was chosen. */
export interface Emission {
  readonly sequence: Sequence;
  readonly token: StreamedToken;
}

/** The signal that all of these share, which may then stop a run that is under way. */
function commonSignal(sequences: readonly Sequence[]): AbortSignal | undefined {
  const signal = sequences[0]?.request.signal;
  return sequences.every((sequence) => sequence.request.signal === signal) ? signal : undefined;
}

/** Awaits a run; false if the signal stopped it. */
async function completed(run: Promise<void>): Promise<boolean> {
  try {
    await run;
    return true;
  } catch (error) {
    if (error instanceof RuntimeError && error.code === "RUN_CANCELLED") return false;
    throw error;
  }
}

/** Takes up to `count` sequences that are still wanted from the front of a queue. */
function take(queue: Sequence[], count: number): Sequence[] {
  const taken: Sequence[] = [];
  while (taken.length < count && queue.length > 0) {
    const sequence = queue.shift()!;
    if (sequence.cancelled) sequence.cancel();
    else taken.push(sequence);
  }
  return taken;
}

/** Reads the prompts of `sequences` into the batch's next rows; false if that was cancelled. */
async function admit(batch: Batch, sequences: readonly Sequence[]): Promise<boolean> {
  const first = batch.rows;
  const started = now();
  const prompts = sequences.map(({ request, longest }) => ({
    tokens: request.prompt,
    adapter: request.adapter,
    longest,
  }));
  if (!(await completed(batch.admit(prompts, commonSignal(sequences))))) {
    batch.truncate(first);
    for (const sequence of sequences) sequence.cancel();
    return false;
  }
  const ended = now();
  sequences.forEach((sequence, index) => {
    sequence.prefillMs = ended - started;
    sequence.startedAt = ended;
    sequence.route = batch.route(first + index);
  });
  return true;
}

/**
 * Runs every sequence of the queue to its end, up to `batch.maxRows` at a time: a finished one makes room for the next.
 * Yields the tokens of each run; everything is freed by whoever owns the batch, also when the consumer stops early.
 */
export async function* decodeSequences(batch: Batch, queue: Sequence[]): AsyncGenerator<readonly Emission[]> {
  const live: Sequence[] = []; // by row
  for (;;) {
    for (let row = live.length - 1; row >= 0; row--) {
      const sequence = live[row]!;
      if (sequence.cancelled) sequence.cancel();
      if (!sequence.finished) continue;
      batch.drop(row);
      const last = live.pop()!;
      if (row < live.length) live[row] = last;
    }
    const fresh = take(queue, batch.maxRows - live.length);
    let first = 0;
    if (fresh.length > 0) {
      first = live.length;
      if (!(await admit(batch, fresh))) continue;
      live.push(...fresh);
    } else if (live.length > 0) {
      const tokens = live.map((sequence) => sequence.tokens.at(-1)!);
      if (!(await completed(batch.step(tokens, commonSignal(live))))) {
        for (const sequence of live) sequence.cancel();
        continue;
      }
    } else {
      return;
    }
    const emissions: Emission[] = [];
    for (let row = first; row < live.length; row++) {
      const sequence = live[row]!;
      emissions.push({ sequence, token: sequence.advance(batch.logitsOf(row), batch.logProbsOf(row)) });
    }
    yield emissions;
  }
}

interface Group {
  readonly sequence: Sequence;
  readonly search: BeamSearch;
}

/**
 * Beam search of every sequence of the queue, all with `beams` beams; each takes that many rows. Yields all tokens of a
 * sequence when its search is over.
 */
export async function* searchSequences(
  batch: Batch,
  queue: Sequence[],
  beams: number,
  tokenizer: Tokenizer | undefined,
  eosTokenIds: readonly number[],
): AsyncGenerator<readonly Emission[]> {
  const vocabulary = batch.logitsOf(0).length;
  while (queue.length > 0) {
    const fresh = take(queue, Math.floor(batch.maxRows / beams));
    if (fresh.length === 0 || !(await admit(batch, fresh))) continue;
    batch.expand(beams);
    let groups: Group[] = fresh.map((sequence) => {
      const { options } = sequence.request;
      const search = new BeamSearch({
        beams,
        lengthPenalty: options.lengthPenalty ?? 1,
        maxNewTokens: options.maxNewTokens,
        eosTokenIds: options.eosTokenIds ?? eosTokenIds,
        stops: options.stop?.length ? (tokens) => endsInStop(tokens, tokenizer, options.stop!) : undefined,
      });
      return { sequence, search };
    });
    while (groups.length > 0) {
      const next: { group: Group; tokens: readonly number[] }[] = [];
      for (const [index, group] of groups.entries()) {
        const base = index * beams;
        const logProbs = batch.logProbs.subarray(base * vocabulary, (base + beams) * vocabulary);
        const moves = group.sequence.cancelled ? undefined : group.search.advance(logProbs, vocabulary);
        if (!moves) {
          yield finish(group);
          continue;
        }
        const prompt = group.sequence.request.prompt.length;
        for (const { from, to, shared } of moves.copies) batch.copyRow(base + from, base + to, prompt + shared);
        if (index !== next.length) {
          // Earlier groups have finished: close the gap.
          for (let row = 0; row < beams; row++) batch.copyRow(base + row, next.length * beams + row, 0);
        }
        next.push({ group, tokens: moves.tokens });
      }
      groups = next.map(({ group }) => group);
      batch.truncate(groups.length * beams);
      if (groups.length === 0) break;
      const signal = commonSignal(groups.map(({ sequence }) => sequence));
      if (
        !(await completed(
          batch.step(
            next.flatMap(({ tokens }) => tokens),
            signal,
          ),
        ))
      ) {
        for (const group of groups) yield finish(group);
        groups = [];
        batch.truncate(0);
      }
    }
  }
}

/** Hands the best hypothesis to the sequence. */
function finish({ sequence, search }: Group): Emission[] {
  const { tokens, logprobs } = search.result();
  const emissions = tokens.map((token, index) => ({ sequence, token: sequence.accept(token, logprobs[index]!) }));
  sequence.cancel(); // without effect unless the search was cut short
  return emissions;
}

function endsInStop(tokens: readonly number[], tokenizer: Tokenizer | undefined, stops: readonly string[]): boolean {
  const text = new TextStream(tokenizer?.decodeStream({ continuation: true }), stops);
  for (const token of tokens) text.push(token);
  return text.stopped;
}
