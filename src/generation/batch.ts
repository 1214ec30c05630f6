/** @file Sequences that decode together: their rows in the KV cache, the method's state per row, and the bound sessions. */
import { InputError } from "../base/index.ts";
import type { Adapter } from "../methods/index.ts";
import { type Binding, Tensor } from "../runtime/index.ts";
import { initialCapacity, KvCache } from "./cache.ts";
import type { PreparedAdapter } from "./derived.ts";
import { type Lease, REPORT, STATE } from "./graphs.ts";
import { bindCache, PREFILL_TOKENS, readPrompts, type Shared } from "./prefill.ts";
import type { RouteReport } from "./request.ts";
import { RouteBook } from "./routes.ts";

/** What reading prompts takes. */
interface Prefill extends Lease {
  readonly prepared: PreparedAdapter;
}

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
  readonly #longest: number;
  /** The prefill session and the adapter's tensors, from the first prompts on. */
  #prefill: Prefill | undefined;
  /** Positions taken in the cache, per row: the method's prefix and the tokens. */
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
    this.#longest = positions.longest;
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
  route(row: number): RouteReport | undefined {
    return this.#routes?.report(row);
  }

  /**
   * Reads prompts into the next rows, in as few runs as the limit on tokens allows.
   * @throws InputError PROMPT_TOO_LONG when an attention prefix leaves too little of the context
   */
  async admit(prompts: readonly (readonly number[])[], signal?: AbortSignal): Promise<void> {
    const { prefix } = await this.#prepare();
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    this.#ensureCapacity(prefix + longest, Math.max(0, ...this.#lengths));
    for (let first = 0; first < prompts.length; ) {
      let end = first + 1;
      let width = prompts[first]!.length;
      while (end < prompts.length) {
        width = Math.max(width, prompts[end]!.length);
        if (width * (end + 1 - first) > PREFILL_TOKENS) break;
        end++;
      }
      await this.#read(prompts.slice(first, end), signal);
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
    const { lease, binding } = await this.#decodeBinding();
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

  /** Makes row `to` the same as row `from`; the tokens before `start` are known to be equal already. */
  copyRow(from: number, to: number, start: number): void {
    const length = this.#lengths[from]!;
    this.#cache.copyRow(from, to, start === 0 ? 0 : start + this.#prefill!.prefix, length);
    this.#lengths[to] = length;
    for (const tensor of this.#state.values()) copyRowOf(tensor, from, to);
    this.#routes?.copy(from, to);
  }

  [Symbol.dispose](): void {
    this.#unbind();
    this.#prefill?.[Symbol.dispose]();
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

  async #prepare(): Promise<Prefill> {
    if (this.#prefill) return this.#prefill;
    const { sessions, adapters, context } = this.#shared;
    const lease = await sessions.lease({ kind: "prefill", adapter: this.#adapter });
    const { session, prefix } = lease;
    try {
      if (prefix + this.#longest > context) {
        const text = `the adapter's prefix takes ${prefix} of ${context} positions, prompt and new tokens up to ${this.#longest}`;
        throw new InputError("PROMPT_TOO_LONG", "generation", `${text}: shorten the prompt or lower maxNewTokens`);
      }
      const prepared = await adapters.prepare(this.#adapter, session);
      const close = (): void => {
        prepared[Symbol.dispose]();
        lease[Symbol.dispose]();
      };
      this.#prefill = { session, prefix, prepared, [Symbol.dispose]: close };
      return this.#prefill;
    } catch (error) {
      lease[Symbol.dispose]();
      throw error;
    }
  }

  async #read(prompts: readonly (readonly number[])[], signal: AbortSignal | undefined): Promise<void> {
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
    const prefill = this.#prefill!;
    try {
      const hidden = await readPrompts(this.#shared, prefill, prefill.prepared, prompts, {
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
      using head = await sessions.lease({ kind: "head", adapter: this.#adapter });
      using binding = head.session.bind();
      prefill.prepared.bind(head.session, binding);
      binding
        .input("hidden", hidden)
        .output("logits", keep(this.#logits.view(first * vocabSize, [rows, vocabSize])))
        .output("logProbs", keep(this.#logProbs.view(first * vocabSize, [rows, vocabSize])));
      await runner.run(head.session, binding, rows);
      for (const prompt of prompts) this.#lengths.push(prefill.prefix + prompt.length);
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
  async #decodeBinding(): Promise<Bound> {
    const rows = this.rows;
    const { capacity } = this.#cache;
    const common = this.#routes?.common;
    const route = common && this.#shared.sessions.isHot(this.#adapter!, common) ? common : undefined;
    const key = route?.key ?? "";
    const bound = this.#bound;
    if (bound && bound.rows === rows && bound.capacity === capacity && bound.route === key) return bound;
    this.#unbind();
    const { sessions, backbone } = this.#shared;
    const lease = await sessions.lease({ kind: "decode", adapter: this.#adapter, route });
    const views: Tensor[] = [];
    const view = (tensor: Tensor, shape: readonly number[]): Tensor => {
      const made = tensor.view(0, shape);
      views.push(made);
      return made;
    };
    const { session } = lease;
    const binding = session.bind();
    const { vocabSize } = backbone.config;
    this.#prefill!.prepared.bind(session, binding);
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
