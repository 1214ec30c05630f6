/** @file Sequences that decode together: their rows in the KV cache, adapter and state of each, and the bound sessions. */
import { Tensor } from "../runtime/index.ts";
import {
  type Admission,
  type AdmissionOptions,
  type AdmittingBatch,
  type BatchPrompt,
  PromptAdmission,
  type ReadPrompts,
} from "./admission.ts";
import { type Extent, initialCapacity, type KvCache } from "./cache.ts";
import { STATE } from "./graphs.ts";
import type { RouteReport } from "./request.ts";
import { Residents } from "./residents.ts";
import { readRoute } from "./routes.ts";
import type { Shared } from "./shared.ts";
import { type Row, Steps } from "./steps.ts";

/** Tokens of a slice where nothing else is asked for. */
const SLICE_TOKENS = 256;

/** Sequences that decode together, as what drives them sees them: a `Batch`, or a simulated one. */
export type DecodingBatch = Pick<
  Batch,
  "maxRows" | "rows" | "adapters" | "logitsOf" | "logProbsOf" | "route" | "reused" | "admit" | "begin" | "step" | "drop"
> &
  Pick<Batch, "truncate" | "copyRow"> &
  Disposable;

/**
 * Up to `maxRows` sequences, each with an adapter of its own or none. Rows 0 … `rows` - 1 are in use. `admit` reads
 * prompts into the next rows, `begin` does so slice by slice, `step` feeds one token to every row; all leave the logits of
 * each row in `logitsOf`. Calls must not overlap, those of admissions included.
 */
export class Batch implements Disposable {
  readonly maxRows: number;
  readonly #shared: Shared;
  readonly #cache: KvCache;
  readonly #logits: Tensor; // [maxRows, V]
  readonly #logProbs: Tensor; // [maxRows, V]
  /** What prefill returned for the rows: state that decode reads, float32 [maxRows, …] by name and shape. */
  readonly #state = new Map<string, Tensor>();
  readonly #longest: number;
  readonly #residents: Residents;
  readonly #rows: Row[] = [];
  readonly #steps: Steps;

  /**
   * @param positions of the longest prompt, and at most in all
   * @param rows that the cache has room for at first; it grows
   */
  constructor(
    shared: Shared,
    maxRows: number,
    positions: { readonly prompt: number; readonly longest: number },
    rows = maxRows,
  ) {
    const { config } = shared.backbone;
    this.maxRows = maxRows;
    this.#shared = shared;
    this.#longest = positions.longest;
    this.#residents = new Residents(shared, (resident) => this.#steps.release(resident));
    const capacity = shared.capacity ?? initialCapacity(positions.prompt, positions.longest);
    this.#cache = shared.pool.cache(config, rows, capacity);
    this.#logits = Tensor.allocate("float32", [maxRows, config.vocabSize]);
    this.#logProbs = Tensor.allocate("float32", [maxRows, config.vocabSize]);
    this.#steps = new Steps(shared, maxRows, {
      cache: this.#cache,
      logits: this.#logits,
      logProbs: this.#logProbs,
      state: (name, shape, first, rows) => this.#stateView(name, shape, first, rows),
    });
  }

  /** Rows in use. */
  get rows(): number {
    return this.#rows.length;
  }

  /** Adapters that have rows; the bare backbone counts as one. */
  get adapters(): number {
    return this.#residents.size;
  }

  /** Bytes that the rows' shares of their adapters take while rows of several adapters run together. */
  get itemBytes(): number {
    return this.#steps.itemBytes;
  }

  /** Logits of a row after its last `admit` or `step`, float32 [V], until the next. */
  logitsOf(row: number): Float32Array {
    return rowsOf(this.#logits, row, 1);
  }

  /** Log-probabilities, as `logitsOf`. */
  logProbsOf(row: number): Float32Array {
    return rowsOf(this.#logProbs, row, 1);
  }

  /** The state of a name for all rows, float32 [maxRows · …]; for tests, where rows do not differ in its shape. */
  state(name: string): Float32Array | undefined {
    for (const [key, tensor] of this.#state) if (key.startsWith(`${name} `)) return tensor.data as Float32Array;
    return undefined;
  }

  /** What a routed method chose for a row. */
  route(row: number): RouteReport | undefined {
    return this.#rows[row]!.route?.report;
  }

  /** Tokens of a row's prompt that did not have to be read, because what they give was kept. */
  reused(row: number): number {
    return this.#rows[row]!.reused;
  }

  /**
   * Reads prompts into the next rows, in their order. Those that stand next to each other are read together as far as
   * their adapters, the limit on tokens and their lengths allow. If it fails, `truncate` to the rows before.
   *
   * @throws InputError PROMPT_TOO_LONG when an attention prefix leaves too little of the context
   */
  async admit(prompts: readonly BatchPrompt[], signal?: AbortSignal): Promise<void> {
    using admission = new PromptAdmission(this.#shared, this.#admitting, prompts, undefined);
    while (admission.waiting > 0) await admission.advance(signal);
  }

  /** Reads prompts into the next rows slice by slice; they may be many rows later by then. */
  begin(prompts: readonly BatchPrompt[], { sliceTokens = SLICE_TOKENS }: AdmissionOptions = {}): Admission {
    return new PromptAdmission(this.#shared, this.#admitting, prompts, sliceTokens);
  }

  /**
   * Feeds row i the token `tokens[i]`, which every row must have.
   * @throws RuntimeError RUN_CANCELLED; the rows are of no use then
   */
  async step(tokens: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    this.#reserve({ rows: this.rows, positions: 1 + Math.max(...this.#rows.map(({ length }) => length)) });
    await this.#steps.run(this.#rows, tokens, signal);
  }

  /** Frees a row; the last row takes its place. */
  drop(row: number): void {
    const last = this.rows - 1;
    if (row !== last) {
      this.#copyTensors(last, row, 0);
      [this.#rows[row], this.#rows[last]] = [this.#rows[last]!, this.#rows[row]!];
    }
    this.truncate(last);
  }

  /** Frees the rows from `rows` on. */
  truncate(rows: number): void {
    for (const { resident } of this.#rows.splice(rows)) this.#residents.leave(resident);
    this.#steps.changed();
  }

  /** Makes row `to` the same as row `from`; the tokens before `start` are known to be equal already. */
  copyRow(from: number, to: number, start: number): void {
    if (from === to) return;
    this.#reserve({ rows: to + 1, positions: 0 });
    this.#copyTensors(from, to, start);
    const row = this.#rows[from]!;
    const before = this.#rows[to];
    if (before?.resident === row.resident && before.route === row.route) {
      before.length = row.length;
      return; // the same sequence but for its tokens
    }
    this.#residents.stay(row.resident);
    this.#rows[to] = { ...row };
    if (before) this.#residents.leave(before.resident);
    this.#steps.changed();
  }

  [Symbol.dispose](): void {
    this.#steps[Symbol.dispose]();
    this.#residents[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
    for (const tensor of this.#state.values()) tensor.dispose();
    for (const tensor of [this.#logits, this.#logProbs]) tensor.dispose();
  }

  #copyTensors(from: number, to: number, start: number): void {
    const { resident, length } = this.#rows[from]!;
    this.#cache.copyRow(from, to, start === 0 ? 0 : start + resident.prefix, length);
    for (const tensor of this.#state.values()) copyRowOf(tensor, from, to);
  }

  /** Makes room in the cache; what the rows hold stays. */
  #reserve({ rows, positions }: Extent): void {
    const used = { rows: this.rows, positions: Math.max(0, ...this.#rows.map(({ length }) => length)) };
    const needed = { rows: Math.max(rows, used.rows), positions: Math.max(positions, used.positions) };
    if (this.#cache.holds(needed)) return;
    this.#steps.release();
    this.#cache.grow(needed, { rows: this.maxRows, positions: this.#shared.context }, used);
  }

  get #admitting(): AdmittingBatch {
    return {
      residents: this.#residents,
      longest: this.#longest,
      place: ({ rows, positions }) => {
        this.#reserve({ rows: this.rows + rows, positions });
        return { cache: this.#cache, first: this.rows };
      },
      enter: (read) => this.#enter(read),
    };
  }

  /** Makes rows of prompts that have been read. */
  async #enter({ residents, prompts, reading, apart }: ReadPrompts): Promise<void> {
    const { sessions, runner, backbone } = this.#shared;
    const { vocabSize } = backbone.config;
    const first = this.rows;
    const rows = prompts.length;
    const lengths = prompts.map(({ tokens }, i) => residents[i]!.prefix + tokens.length);
    if (apart) {
      this.#reserve({ rows: first + 1, positions: lengths[0]! });
      this.#cache.copyFrom(apart, first, lengths[0]!);
    }
    using logits = this.#logits.view(first * vocabSize, [rows, vocabSize]);
    using logProbs = this.#logProbs.view(first * vocabSize, [rows, vocabSize]);
    // One that changes the head is read by itself.
    using head = await sessions.lease({ kind: "head", adapter: residents[0]!.adapter });
    using binding = head.session.bind();
    residents[0]!.bind(head.session, binding);
    binding.input("hidden", reading.hidden).output("logits", logits).output("logProbs", logProbs);
    await runner.run(head.session, binding, rows);
    for (const [i, resident] of residents.entries()) {
      const outputs = reading.outputsOf(i);
      for (const [name, { shape, data }] of outputs) {
        if (!name.startsWith(STATE)) continue;
        using view = this.#stateView(name.slice(STATE.length), shape.slice(1), first + i, 1);
        (view.data as Float32Array).set(data);
      }
      this.#residents.stay(resident);
      const route = readRoute(resident.adapter, outputs);
      this.#rows.push({ resident, route, reused: reading.reused, length: lengths[i]! });
    }
    this.#steps.changed();
  }

  /** State of rows, float32 [rows, …shape]. */
  #stateView(name: string, shape: readonly number[], first: number, rows: number): Tensor {
    const key = `${name} ${shape.join()}`;
    let tensor = this.#state.get(key);
    if (!tensor) {
      tensor = Tensor.allocate("float32", [this.maxRows, ...shape]);
      this.#state.set(key, tensor);
    }
    return tensor.view((first * tensor.size) / this.maxRows, [rows, ...shape]);
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
