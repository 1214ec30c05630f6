/** @file Probabilities of given tokens: a prefill for the hidden states, then the head over as many rows as memory likes. */
import type { Adapter } from "../methods/index.ts";
import { Tensor } from "../runtime/index.ts";
import type { PreparedAdapter } from "./derived.ts";
import { isCausal } from "./prefix-cache.ts";
import { PromptReading } from "./reading.ts";
import type { RouteReport, TokenLogprob } from "./request.ts";
import { readRoute } from "./routes.ts";
import { likeliest } from "./sampler.ts";
import { PREFILL_TOKENS, type Shared } from "./shared.ts";

/** A sequence whose tokens from `from` (at least 1) on are to be scored. */
export interface ScoredSequence {
  readonly tokens: readonly number[];
  /** How many of its tokens a routed method sees as the prompt. */
  readonly promptLength: number;
  readonly from: number;
  /** Also what comes after the last token. */
  readonly last?: boolean;
  /** Also this many of the likeliest tokens in the place of every scored one. */
  readonly top?: number;
}

export interface SequenceScores {
  readonly logprobs: number[];
  readonly greedy: boolean;
  /** Most likely first; empty lists where none are asked for. */
  readonly tops: readonly (readonly TokenLogprob[])[];
  /** Logits and log-probabilities after the last token, float32 [V] each. */
  readonly last?: Distribution;
  readonly route?: RouteReport;
}

/** What the model says about the next token, float32 [V] each. */
export interface Distribution {
  readonly logits: Float32Array;
  readonly logProbs: Float32Array;
}

/** Most logits held at once: 64 MiB of them. */
const LOGITS = 2 ** 24;

/** How scoring is watched and stopped. */
export interface ScoreOptions {
  /** Stops the run that is under way; the call then throws. */
  readonly signal?: AbortSignal | undefined;
  /** See `GenerationRequest.scope`. */
  readonly scope?: string | undefined;
  /** Told how many rows are finished. */
  readonly onProgress?: ((finished: number, total: number) => void) | undefined;
}

/** What has to be read of a sequence: its last token only where something is wanted after it. */
function fedTokens({ tokens, from, last }: ScoredSequence): readonly number[] {
  return last || from >= tokens.length ? tokens : tokens.slice(0, -1);
}

/** Cuts sequences into batches of similar length, each of at most `limit` tokens or a single longer sequence. */
export function sequenceBatches(sequences: readonly ScoredSequence[], limit = PREFILL_TOKENS): number[][] {
  const order = sequences
    .map((_, index) => index)
    .sort((a, b) => sequences[a]!.tokens.length - sequences[b]!.tokens.length);
  const batches: number[][] = [];
  for (const index of order) {
    const last = batches.at(-1);
    if (last && sequences[index]!.tokens.length * (last.length + 1) <= limit) last.push(index);
    else batches.push([index]);
  }
  return batches;
}

/** Scores sequences in batches of similar length; results in the order of `sequences`. */
export async function scoreSequences(
  shared: Shared,
  adapter: Adapter | undefined,
  sequences: readonly ScoredSequence[],
  signal?: AbortSignal,
  scope?: string,
): Promise<SequenceScores[]> {
  const results = new Array<SequenceScores>(sequences.length);
  const prefixes = isCausal({ adapter }) ? shared.prefixes : undefined; // what is wanted is more than the last token
  const promptOf = (index: number | undefined) => {
    if (index === undefined) return undefined;
    const { tokens, promptLength, from } = sequences[index]!;
    return { adapter, scope, tokens: tokens.slice(0, Math.min(promptLength, from - 1)) };
  };
  const score = async (indices: readonly number[]): Promise<void> => {
    const batch = indices.map((index) => sequences[index]!);
    const scores = await scoreBatch(shared, adapter, batch, signal, scope);
    for (const [i, index] of indices.entries()) results[index] = scores[i]!;
  };
  for (const indices of sequenceBatches(sequences)) {
    const together: number[] = [];
    for (const [i, index] of indices.entries()) {
      if (prefixes?.standsApart(promptOf(index)!, promptOf(indices[i + 1]))) await score([index]);
      else together.push(index);
    }
    if (together.length > 0) await score(together);
  }
  return results;
}

async function scoreBatch(
  shared: Shared,
  adapter: Adapter | undefined,
  sequences: readonly ScoredSequence[],
  signal: AbortSignal | undefined,
  scope: string | undefined,
): Promise<SequenceScores[]> {
  const rows = sequences.length;
  const { config } = shared.backbone;
  const fed = sequences.map(fedTokens);
  const longest = Math.max(...fed.map((tokens) => tokens.length));
  // The hidden state at position t - 1 says what token t will be; those of last positions come at the end.
  const positions = sequences.flatMap(({ tokens, from }, row) =>
    Array.from({ length: tokens.length - from }, (_, i) => [row, from + i - 1] as const),
  );
  const targets = sequences.flatMap(({ tokens, from }) => tokens.slice(from));
  const lastRows = sequences.flatMap(({ last }, row) => (last ? [row] : []));
  for (const row of lastRows) positions.push([row, sequences[row]!.tokens.length - 1]);

  using prepared = await shared.adapters.prepare(adapter);
  using cache = shared.pool.cache(config, rows, prepared.prefix + longest);
  const prompts = sequences.map(({ promptLength }, row) => ({
    adapter: prepared,
    tokens: fed[row]!,
    promptLength,
    scope,
  }));
  using reading = new PromptReading(shared, prompts, { positions, cache, first: 0, shares: true });
  while (!(await reading.advance(signal)));
  const head = { prepared, hidden: reading.hidden };
  const { picked, best } = await pick(shared, head, targets);
  const wanted = sequences.flatMap(({ tokens, from, top }) => new Array<number>(tokens.length - from).fill(top ?? 0));
  const tops = wanted.map((): TokenLogprob[] => []);
  const lasts: Distribution[] = [];
  const asked = wanted.flatMap((top, at) => (top > 0 ? [at] : []));
  for (const at of lastRows.keys()) asked.push(targets.length + at);
  await distributions(shared, head, asked, (at, logits, logProbs) => {
    if (at < targets.length) tops[at] = likeliest(logProbs, wanted[at]!);
    else lasts.push({ logits: logits.slice(), logProbs: logProbs.slice() });
  });
  let at = 0;
  return sequences.map(({ tokens, from }, row) => {
    const first = at;
    const logprobs: number[] = [];
    let greedy = true;
    for (let t = from; t < tokens.length; t++, at++) {
      logprobs.push(picked[at]!);
      if (best[at] !== BigInt(tokens[t]!)) greedy = false;
    }
    const last = lasts[lastRows.indexOf(row)];
    const route = readRoute(adapter, reading.outputsOf(row))?.report;
    return { logprobs, greedy, tops: tops.slice(first, at), ...(last && { last }), ...(route && { route }) };
  });
}

/** Hidden states [R, d] and whose they are. */
interface HeadInput {
  readonly prepared: PreparedAdapter;
  readonly hidden: Tensor;
}

/** Log-probability of each target under the first rows of `hidden`, and the arg-max tokens. */
async function pick(
  shared: Shared,
  { prepared, hidden }: HeadInput,
  targets: readonly number[],
): Promise<{ picked: Float32Array; best: BigInt64Array }> {
  const { hiddenSize, vocabSize } = shared.backbone.config;
  const picked = new Float32Array(targets.length);
  const best = new BigInt64Array(targets.length);
  const chunk = Math.max(1, Math.floor(LOGITS / vocabSize));
  using lease = await shared.sessions.lease({ kind: "pick", adapter: prepared.adapter });
  const { session } = lease;
  for (let first = 0; first < targets.length; first += chunk) {
    const count = Math.min(chunk, targets.length - first);
    const ids = BigInt64Array.from(targets.slice(first, first + count), BigInt);
    using rows = hidden.view(first * hiddenSize, [count, hiddenSize]);
    using wanted = Tensor.from("int64", [count], ids);
    using logprobs = Tensor.allocate("float32", [count]);
    using argmax = Tensor.allocate("int64", [count]);
    using binding = session.bind();
    prepared.bind(session, binding);
    binding.input("hidden", rows).input("targets", wanted).output("picked", logprobs).output("best", argmax);
    await shared.runner.run(session, binding, count);
    picked.set(logprobs.data as Float32Array, first);
    best.set(argmax.data as BigInt64Array, first);
  }
  return { picked, best };
}

/** Shows what the model says after the hidden states `rows` (ascending), float32 [V] each and only until `visit` returns. */
async function distributions(
  shared: Shared,
  { prepared, hidden }: HeadInput,
  rows: readonly number[],
  visit: (row: number, logits: Float32Array, logProbs: Float32Array) => void,
): Promise<void> {
  if (rows.length === 0) return;
  const { hiddenSize, vocabSize } = shared.backbone.config;
  const chunk = Math.max(1, Math.min(rows.length, Math.floor(LOGITS / (8 * vocabSize))));
  using lease = await shared.sessions.lease({ kind: "head", adapter: prepared.adapter });
  using logits = Tensor.allocate("float32", [chunk, vocabSize]);
  using logProbs = Tensor.allocate("float32", [chunk, vocabSize]);
  for (let at = 0; at < rows.length; ) {
    const first = rows[at]!;
    // As many neighbours as the memory takes.
    let count = 1;
    while (count < chunk && rows[at + count] === first + count) count++;
    using inputs = hidden.view(first * hiddenSize, [count, hiddenSize]);
    using scores = logits.view(0, [count, vocabSize]);
    using logs = logProbs.view(0, [count, vocabSize]);
    using binding = lease.session.bind();
    prepared.bind(lease.session, binding);
    binding.input("hidden", inputs).output("logits", scores).output("logProbs", logs);
    await shared.runner.run(lease.session, binding, count);
    for (let row = 0; row < count; row++) {
      const of = ({ data }: Tensor) => (data as Float32Array).subarray(row * vocabSize, (row + 1) * vocabSize);
      visit(first + row, of(scores), of(logs));
    }
    at += count;
  }
}
