/** @file Sequences that decode together: their rows in the KV cache, the method's state per row, and the bound sessions. */
import { ADAPTER_INPUT, type Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type Binding, type Session, Tensor } from "../runtime/index.ts";
import { type BufferPool, initialCapacity, KvCache } from "./cache.ts";
import { type Lease, REPORT, type SessionCache, STATE } from "./graphs.ts";
import { RouteBook } from "./routes.ts";
import type { Runner } from "./runner.ts";

/** What every batch of an engine shares. */
export interface Shared {
  readonly backbone: Backbone;
  readonly sessions: SessionCache;
  readonly pool: BufferPool;
  readonly runner: Runner;
  /** Most positions of a sequence. */
  readonly context: number;
  /** Fixed number of positions a cache is made for, or undefined to let it grow. */
  readonly capacity: number | undefined;
}

/** Most prompt tokens, padding included, that one prefill run reads (a single longer prompt is read alone). */
export const PREFILL_TOKENS = 2048;

/** Tensors that are made for one binding and go with it. */
interface Bound {
  readonly binding: Binding;
  readonly lease: Lease;
  readonly views: readonly Tensor[];
}

/**
 * Up to `maxRows` sequences of one adapter. Rows 0 … `rows` - 1 are in use. `admit` reads prompts into the next rows,
 * `step` feeds one token to every row; both leave the logits of each row in `logitsOf`.
 */
export class Batch implements Disposable {
  readonly maxRows: number;
  readonly #shared: Shared;
  readonly #adapter: Adapter | undefined;
  readonly #cache: KvCache;
  readonly #logits: Tensor; // [maxRows, V]
  readonly #logProbs: Tensor; // [maxRows, V]
  readonly #tokens: Tensor; // int64 [maxRows, 1]
  readonly #lastPositions: Tensor; // int32 [maxRows]
  readonly #totalLength = Tensor.scalar("int32", 0);
  /** What prefill returned for the rows: state that decode reads, float32 [maxRows, …] by name. */
  readonly #state = new Map<string, Tensor>();
  readonly #routes: RouteBook | undefined;
  /** Tokens in the cache, per row. */
  readonly #lengths: number[] = [];
  #bound: (Bound & { readonly rows: number; readonly capacity: number; readonly route: string }) | undefined;

  /** @param positions of the longest prompt, and at most in all */
  constructor(
    shared: Shared,
    adapter: Adapter | undefined,
    maxRows: number,
    positions: { readonly prompt: number; readonly longest: number },
  ) {
    const { config } = shared.backbone;
    this.maxRows = maxRows;
    this.#shared = shared;
    this.#adapter = adapter;
    const capacity = shared.capacity ?? initialCapacity(positions.prompt, positions.longest);
    this.#cache = new KvCache(config, shared.pool, maxRows, capacity);
    this.#logits = Tensor.allocate("float32", [maxRows, config.vocabSize]);
    this.#logProbs = Tensor.allocate("float32", [maxRows, config.vocabSize]);
    this.#tokens = Tensor.allocate("int64", [maxRows, 1]);
    this.#lastPositions = Tensor.allocate("int32", [maxRows]);
    if (adapter?.method.routing) this.#routes = new RouteBook(adapter.method.routing(adapter.config));
  }

  /** Rows in use. */
  get rows(): number {
    return this.#lengths.length;
  }

  /** Logits of a row after its last `admit` or `step`, float32 [V], until the next. */
  logitsOf(row: number): Float32Array {
    return rowsOf(this.#logits, row, 1);
  }

  /** Log-probabilities, as `logitsOf`. */
  logProbsOf(row: number): Float32Array {
    return rowsOf(this.#logProbs, row, 1);
  }

  /** Log-probabilities of the first rows, float32 [rows · V]. */
  get logProbs(): Float32Array {
    return this.#logProbs.data as Float32Array;
  }

  /** The state of a name for all rows, float32 [maxRows · …]; for tests and reports. */
  state(name: string): Float32Array | undefined {
    return this.#state.get(name)?.data as Float32Array | undefined;
  }

  /** What a routed method chose for a row. */
  route(row: number) {
    return this.#routes?.report(row);
  }

  /** Reads prompts into the next rows, in as few runs as the limit on tokens allows. */
  async admit(prompts: readonly (readonly number[])[], signal?: AbortSignal): Promise<void> {
    this.#ensureCapacity(Math.max(...prompts.map((prompt) => prompt.length)), Math.max(0, ...this.#lengths));
    for (let first = 0; first < prompts.length; ) {
      let end = first + 1;
      let width = prompts[first]!.length;
      while (end < prompts.length) {
        width = Math.max(width, prompts[end]!.length);
        if (width * (end + 1 - first) > PREFILL_TOKENS) break;
        end++;
      }
      await this.#prefill(prompts.slice(first, end), signal);
      first = end;
    }
  }

  /**
   * Feeds row i the token `tokens[i]`, which every row must have.
   * @throws RuntimeError RUN_CANCELLED; the rows are of no use then
   */
  async step(tokens: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    const rows = this.rows;
    const longest = Math.max(...this.#lengths);
    this.#ensureCapacity(longest + 1, longest);
    const feed = this.#tokens.data as BigInt64Array;
    const last = this.#lastPositions.data as Int32Array;
    for (let row = 0; row < rows; row++) {
      feed[row] = BigInt(tokens[row]!);
      last[row] = this.#lengths[row]!++;
    }
    (this.#totalLength.data as Int32Array)[0] = longest + 1;
    const { lease, binding } = this.#decodeBinding();
    await this.#shared.runner.run(lease.session, binding, rows, signal);
  }

  /** Frees a row; the last row takes its place. */
  drop(row: number): void {
    const last = this.rows - 1;
    if (row !== last) this.copyRow(last, row, 0);
    this.truncate(last);
  }

  /** Frees the rows from `rows` on. */
  truncate(rows: number): void {
    this.#lengths.length = Math.min(rows, this.rows);
    this.#routes?.truncate(rows);
  }

  /** Gives every row in use `count` rows: row r becomes rows r · count … r · count + count - 1, all alike. */
  expand(count: number): void {
    for (let row = this.rows - 1; row >= 0; row--) {
      for (let to = (row + 1) * count - 1; to >= row * count; to--) {
        if (to === row) continue;
        this.copyRow(row, to, 0);
        if (to === row * count) for (const tensor of [this.#logits, this.#logProbs]) copyRowOf(tensor, row, to);
      }
    }
  }

  /** Makes row `to` the same as row `from`; positions before `start` are known to be equal already. */
  copyRow(from: number, to: number, start: number): void {
    const length = this.#lengths[from]!;
    this.#cache.copyRow(from, to, start, length);
    this.#lengths[to] = length;
    for (const tensor of this.#state.values()) copyRowOf(tensor, from, to);
    this.#routes?.copy(from, to);
  }

  [Symbol.dispose](): void {
    this.#unbind();
    this.#cache[Symbol.dispose]();
    for (const tensor of this.#state.values()) tensor.dispose();
    for (const tensor of [this.#logits, this.#logProbs, this.#tokens, this.#lastPositions, this.#totalLength]) {
      tensor.dispose();
    }
  }

  #ensureCapacity(needed: number, used: number): void {
    if (needed <= this.#cache.capacity) return;
    this.#unbind();
    this.#cache.grow(needed, this.#shared.context, used);
  }

  async #prefill(prompts: readonly (readonly number[])[], signal: AbortSignal | undefined): Promise<void> {
    const { sessions, runner } = this.#shared;
    const { vocabSize } = this.#shared.backbone.config;
    const first = this.rows;
    const rows = prompts.length;
    const reports = new Map<string, Tensor>();
    const made: Tensor[] = [];
    const keep = (tensor: Tensor): Tensor => {
      made.push(tensor);
      return tensor;
    };
    using lease = sessions.lease({ kind: "prefill", adapter: this.#adapter });
    try {
      const hidden = await readPrompts(this.#shared, lease.session, this.#adapter, prompts, {
        positions: prompts.map((prompt, row) => [row, prompt.length - 1]),
        cache: this.#cache,
        first,
        signal,
        output: (name, shape) => {
          if (name.startsWith(STATE)) return keep(this.#stateView(name.slice(STATE.length), shape, first));
          if (!name.startsWith(REPORT)) return undefined;
          const tensor = keep(Tensor.allocate("float32", shape));
          reports.set(name.slice(REPORT.length), tensor);
          return tensor;
        },
      });
      keep(hidden);
      using head = sessions.lease({ kind: "head" });
      using binding = head.session.bind();
      binding
        .input("hidden", hidden)
        .output("logits", keep(this.#logits.view(first * vocabSize, [rows, vocabSize])))
        .output("logProbs", keep(this.#logProbs.view(first * vocabSize, [rows, vocabSize])));
      await runner.run(head.session, binding, rows);
      for (const prompt of prompts) this.#lengths.push(prompt.length);
      const gates = this.#state.get("gates");
      const probabilities = reports.get("probabilities");
      if (gates && probabilities) {
        this.#routes?.add(rows, rowsOf(gates, first, rows), probabilities.data as Float32Array);
      }
    } finally {
      for (const tensor of made) tensor.dispose();
    }
  }

  #stateView(name: string, shape: readonly number[], first: number): Tensor {
    let tensor = this.#state.get(name);
    if (!tensor) {
      tensor = Tensor.allocate("float32", [this.maxRows, ...shape.slice(1)]);
      this.#state.set(name, tensor);
    }
    return tensor.view((first * tensor.size) / this.maxRows, shape);
  }

  /** The binding for the present rows; made anew only when their number, the cache or the route has changed. */
  #decodeBinding(): Bound {
    const rows = this.rows;
    const { capacity } = this.#cache;
    const common = this.#routes?.common;
    const route = common && this.#shared.sessions.isHot(this.#adapter!, common) ? common : undefined;
    const key = route?.key ?? "";
    const bound = this.#bound;
    if (bound && bound.rows === rows && bound.capacity === capacity && bound.route === key) return bound;
    this.#unbind();
    const { sessions, backbone } = this.#shared;
    const lease = sessions.lease({ kind: "decode", adapter: this.#adapter, route });
    const views: Tensor[] = [];
    const view = (tensor: Tensor, shape: readonly number[]): Tensor => {
      const made = tensor.view(0, shape);
      views.push(made);
      return made;
    };
    const { session } = lease;
    const binding = session.bind();
    const { vocabSize } = backbone.config;
    bindAdapter(session, binding, this.#adapter);
    views.push(...bindCache(binding, this.#cache, 0, rows));
    binding
      .input("tokens", view(this.#tokens, [rows, 1]))
      .input("lastPositions", view(this.#lastPositions, [rows]))
      .input("totalLength", this.#totalLength)
      .output("logits", view(this.#logits, [rows, vocabSize]))
      .output("logProbs", view(this.#logProbs, [rows, vocabSize]));
    for (const { name } of session.inputs) {
      if (!name.startsWith(STATE)) continue;
      const tensor = this.#state.get(name.slice(STATE.length))!;
      binding.input(name, view(tensor, [rows, ...tensor.shape.slice(1)]));
    }
    this.#bound = { binding, lease, views, rows, capacity, route: key };
    return this.#bound;
  }

  #unbind(): void {
    const bound = this.#bound;
    if (!bound) return;
    this.#bound = undefined;
    bound.binding.dispose();
    for (const tensor of bound.views) tensor.dispose();
    bound.lease[Symbol.dispose]();
  }
}

function rowsOf(tensor: Tensor, first: number, rows: number): Float32Array {
  const width = tensor.size / tensor.shape[0]!;
  return (tensor.data as Float32Array).subarray(first * width, (first + rows) * width);
}

function copyRowOf({ data, size, shape }: Tensor, from: number, to: number): void {
  const width = size / shape[0]!;
  data.copyWithin(to * width, from * width, (from + 1) * width);
}

/** Binds an adapter's tensors to the inputs that a session has for them. */
export function bindAdapter(session: Session, binding: Binding, adapter: Adapter | undefined): void {
  for (const { name } of session.inputs) {
    if (name.startsWith(ADAPTER_INPUT)) binding.input(name, adapter!.tensors.get(name.slice(ADAPTER_INPUT.length))!);
  }
}

/** Binds rows of a cache as past and present; returns the views made for it. */
export function bindCache(binding: Binding, cache: KvCache, first: number, rows: number): Tensor[] {
  return cache.layers(first, rows).flatMap(({ key, value }, layer) => {
    binding
      .input(`past.${layer}.key`, key)
      .output(`present.${layer}.key`, key)
      .input(`past.${layer}.value`, value)
      .output(`present.${layer}.value`, value);
    return [key, value];
  });
}

export interface ReadOptions {
  /** Row and position of every hidden state that is wanted. */
  readonly positions: readonly (readonly [row: number, position: number])[];
  readonly cache: KvCache;
  /** Row of the cache that the first prompt takes. */
  readonly first: number;
  /** How many tokens of each row count as its prompt (for a method that reads prompts); default all. */
  readonly promptLengths?: readonly number[];
  readonly signal?: AbortSignal | undefined;
  /** Where an output of the method goes, or undefined not to have it. The shape's rows are those of the prompts. */
  output(name: string, shape: readonly number[]): Tensor | undefined;
}

/** Runs a prefill over right-padded sequences. Returns float32 [positions, d], to be disposed by the caller. */
export async function readPrompts(
  shared: Shared,
  session: Session,
  adapter: Adapter | undefined,
  sequences: readonly (readonly number[])[],
  { positions, cache, first, promptLengths, signal, output }: ReadOptions,
): Promise<Tensor> {
  const rows = sequences.length;
  const width = Math.max(...sequences.map((sequence) => sequence.length));
  const tokens = new BigInt64Array(rows * width); // padded with token 0
  const promptMask = new Float32Array(rows * width);
  sequences.forEach((sequence, row) => {
    sequence.forEach((token, t) => {
      tokens[row * width + t] = BigInt(token);
    });
    promptMask.fill(1, row * width, row * width + (promptLengths?.[row] ?? sequence.length));
  });
  const inputs: Tensor[] = [];
  const input = (tensor: Tensor): Tensor => {
    inputs.push(tensor);
    return tensor;
  };
  const hidden = Tensor.allocate("float32", [positions.length, shared.backbone.config.hiddenSize]);
  let done = false;
  try {
    using binding = session.bind();
    const rowIndices = BigInt64Array.from(positions, ([row, position]) => BigInt(row * width + position));
    // Attention is told that every sequence is as long as the longest. It is causal, so no real token sees padding,
    // and what padding leaves in the cache is overwritten before a sequence gets there. Told the true lengths, it
    // would leave numbers of padded positions undefined, and a NaN there would reach the router's sums.
    const feeds: Record<string, () => Tensor> = {
      tokens: () => Tensor.from("int64", [rows, width], tokens),
      rows: () => Tensor.from("int64", [positions.length], rowIndices),
      promptMask: () => Tensor.from("float32", [rows, width], promptMask),
      lastPositions: () => Tensor.from("int32", [rows], new Int32Array(rows).fill(width - 1)),
      totalLength: () => Tensor.scalar("int32", width),
    };
    for (const { name } of session.inputs) {
      const make = feeds[name];
      if (make) binding.input(name, input(make()));
    }
    bindAdapter(session, binding, adapter);
    inputs.push(...bindCache(binding, cache, first, rows));
    binding.output("hidden", hidden);
    for (const { name, shape } of session.outputs) {
      const target = output(name, [rows, ...shape.slice(1).map(Number)]);
      if (target) binding.output(name, target);
    }
    await shared.runner.run(session, binding, rows * width, signal);
    done = true;
    return hidden;
  } finally {
    for (const tensor of inputs) tensor.dispose();
    if (!done) hidden.dispose();
  }
}
