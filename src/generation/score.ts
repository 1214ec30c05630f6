/** @file Probabilities of given tokens: a prefill for the hidden states, then the head over as many rows as memory likes. */
import type { Adapter } from "../methods/index.ts";
import { Tensor } from "../runtime/index.ts";
import { KvCache } from "./cache.ts";
import type { PreparedAdapter } from "./derived.ts";
import { REPORT, STATE } from "./graphs.ts";
import { PREFILL_TOKENS, readPrompts, type Shared } from "./prefill.ts";
import type { RouteReport } from "./request.ts";
import { reportRoute, routeOf } from "./routes.ts";

/** A sequence whose tokens from `from` (at least 1) on are to be scored. */
export interface ScoredSequence {
  readonly tokens: readonly number[];
  /** How many of its tokens a routed method sees as the prompt. */
  readonly promptLength: number;
  readonly from: number;
  /** Also the logits after the last token. */
  readonly last?: boolean;
}

export interface SequenceScores {
  readonly logprobs: number[];
  readonly greedy: boolean;
  readonly lastLogits?: Float32Array;
  readonly route?: RouteReport;
}

/** Most logits held at once: 64 MiB of them. */
const LOGITS = 2 ** 24;

/** How scoring is watched and stopped. */
export interface ScoreOptions {
  /** Stops the run that is under way; the call then throws. */
  readonly signal?: AbortSignal | undefined;
  /** Told how many rows are finished. */
  readonly onProgress?: ((finished: number, total: number) => void) | undefined;
}

/** What has to be read of a sequence: its last token only where something is wanted after it. */
function fedTokens({ tokens, from, last }: ScoredSequence): readonly number[] {
  return last || from >= tokens.length ? tokens : tokens.slice(0, -1);
}

/** Scores sequences in batches of similar length; results in the order of `sequences`. */
export async function scoreSequences(
  shared: Shared,
  adapter: Adapter | undefined,
  sequences: readonly ScoredSequence[],
  options: ScoreOptions = {},
): Promise<SequenceScores[]> {
  const order = sequences
    .map((_, index) => index)
    .sort((a, b) => sequences[a]!.tokens.length - sequences[b]!.tokens.length);
  const results = new Array<SequenceScores>(sequences.length);
  for (let first = 0; first < order.length; ) {
    let end = first + 1;
    while (end < order.length && sequences[order[end]!]!.tokens.length * (end + 1 - first) <= PREFILL_TOKENS) end++;
    const indices = order.slice(first, end);
    const scores = await scoreBatch(
      shared,
      adapter,
      indices.map((index) => sequences[index]!),
      options.signal,
    );
    indices.forEach((index, i) => {
      results[index] = scores[i]!;
    });
    first = end;
    options.onProgress?.(end, order.length);
  }
  return results;
}

async function scoreBatch(
  shared: Shared,
  adapter: Adapter | undefined,
  sequences: readonly ScoredSequence[],
  signal: AbortSignal | undefined,
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

  const made: Tensor[] = [];
  const extra = new Map<string, Float32Array>();
  try {
    using lease = await shared.sessions.lease({ kind: "prefill", adapter });
    using prepared = await shared.adapters.prepare(adapter, lease.session);
    using cache = new KvCache(config, shared.pool, rows, lease.prefix + longest);
    const hidden = await readPrompts(shared, lease, prepared, fed, {
      positions,
      cache,
      first: 0,
      promptLengths: sequences.map(({ promptLength }) => promptLength),
      signal,
      output(name, shape) {
        if (name !== `${STATE}gates` && !name.startsWith(REPORT)) return undefined;
        const tensor = Tensor.allocate("float32", shape);
        made.push(tensor);
        extra.set(name, tensor.data as Float32Array);
        return tensor;
      },
    });
    made.push(hidden);
    const head = { adapter, prepared, hidden };
    const { picked, best } = await pick(shared, head, targets);
    const lastLogits = await headLogits(shared, head, targets.length, lastRows.length);
    let at = 0;
    return sequences.map(({ tokens, from }, row) => {
      const logprobs: number[] = [];
      let greedy = true;
      for (let t = from; t < tokens.length; t++, at++) {
        logprobs.push(picked[at]!);
        if (best[at] !== BigInt(tokens[t]!)) greedy = false;
      }
      const logits = lastLogits[lastRows.indexOf(row)];
      const route = routeReport(adapter, extra, row, rows);
      return { logprobs, greedy, ...(logits && { lastLogits: logits }), ...(route && { route }) };
    });
  } finally {
    for (const tensor of made) tensor.dispose();
  }
}

/** Hidden states [R, d] and whose they are. */
interface HeadInput {
  readonly adapter: Adapter | undefined;
  readonly prepared: PreparedAdapter;
  readonly hidden: Tensor;
}

/** Log-probability of each target under the first rows of `hidden`, and the arg-max tokens. */
async function pick(
  shared: Shared,
  { adapter, prepared, hidden }: HeadInput,
  targets: readonly number[],
): Promise<{ picked: Float32Array; best: BigInt64Array }> {
  const { hiddenSize, vocabSize } = shared.backbone.config;
  const picked = new Float32Array(targets.length);
  const best = new BigInt64Array(targets.length);
  const chunk = Math.max(1, Math.floor(LOGITS / vocabSize));
  using lease = await shared.sessions.lease({ kind: "pick", adapter });
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

/** Logits of `count` rows of `hidden` from row `first` on, each a copy, float32 [V]. */
async function headLogits(
  shared: Shared,
  { adapter, prepared, hidden }: HeadInput,
  first: number,
  count: number,
): Promise<Float32Array[]> {
  const { hiddenSize, vocabSize } = shared.backbone.config;
  const logits: Float32Array[] = [];
  if (count === 0) return logits;
  using lease = await shared.sessions.lease({ kind: "head", adapter });
  using out = Tensor.allocate("float32", [1, vocabSize]);
  for (let row = first; row < first + count; row++) {
    using rows = hidden.view(row * hiddenSize, [1, hiddenSize]);
    using binding = lease.session.bind();
    prepared.bind(lease.session, binding);
    binding.input("hidden", rows).output("logits", out);
    await shared.runner.run(lease.session, binding, 1);
    logits.push(Float32Array.from(out.data as Float32Array));
  }
  return logits;
}

function routeReport(
  adapter: Adapter | undefined,
  values: ReadonlyMap<string, Float32Array>,
  row: number,
  rows: number,
): RouteReport | undefined {
  const routing = adapter?.method.routing?.(adapter.config);
  const gates = values.get(`${STATE}gates`);
  const probabilities = values.get(`${REPORT}probabilities`);
  if (!routing || !gates || !probabilities) return undefined;
  const size = gates.length / rows;
  const of = (all: Float32Array) => all.subarray(row * size, (row + 1) * size);
  return reportRoute(routing, routeOf(of(gates), routing.experts.length), of(probabilities));
}
