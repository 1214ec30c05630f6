/** @file Prompts on their way into a batch: read slice by slice, so that its rows can be stepped in between. */
import { InputError } from "../base/index.ts";
import type { Adapter } from "../methods/index.ts";
import type { Extent, KvCache } from "./cache.ts";
import { takesItems } from "./pass.ts";
import { PromptReading } from "./reading.ts";
import type { Resident, Residents } from "./residents.ts";
import { PREFILL_TOKENS, type Shared } from "./shared.ts";

/** A prompt that joins others spares a pass of its own, which costs about as much as this many tokens more in theirs. */
const SPARED_TOKENS = 24;

/** Prompts that are read in one pass, by their lengths: as many as it may hold, as long as that spares more than padding costs. */
export class Together {
  readonly #limit: number;
  #prompts = 0;
  #width = 0;
  #tokens = 0;

  /** @param limit tokens of a pass, padding included; a single prompt may be longer */
  constructor(limit: number) {
    this.#limit = Math.min(limit, PREFILL_TOKENS);
  }

  /** Tokens with the padding. */
  get padded(): number {
    return this.#width * this.#prompts;
  }

  /** Counts one more prompt, if it is to be read with those before. */
  join(length: number): boolean {
    const width = Math.max(this.#width, length);
    const tokens = this.#tokens + length;
    const padded = width * (this.#prompts + 1);
    const worth = padded <= this.#limit && padded - tokens <= SPARED_TOKENS * this.#prompts;
    if (this.#prompts > 0 && !worth) return false;
    this.#width = width;
    this.#tokens = tokens;
    this.#prompts++;
    return true;
  }
}

/** A prompt on its way into a batch. */
export interface BatchPrompt {
  readonly tokens: readonly number[];
  /** Without one the bare backbone answers. Must stay undisposed as long as the row is there. */
  readonly adapter?: Adapter | undefined;
  /** Positions that prompt and answer take at most; default: the batch's. */
  readonly longest?: number;
  /** What is kept of prompts that were read is shared with those of the same scope. */
  readonly scope?: string | undefined;
}

export interface AdmissionOptions {
  /**
   * A slice is about as much work as reading this many tokens, but at least a layer. Prompts that fit a slice are read in
   * one, by themselves or several of one adapter together. Default: 256.
   */
  readonly sliceTokens?: number;
}

/**
 * Prompts that are being read. Between two slices anything may be done with the batch, other admissions included; the
 * caller sees to it that there will be rows for them.
 */
export interface Admission extends Disposable {
  /** Prompts that have not entered the batch yet; it is over when there are none. */
  readonly waiting: number;
  /**
   * Reads the next slice. Returns how many prompts have entered the batch with it: the next ones in the order given, in
   * the batch's last rows.
   *
   * @throws InputError PROMPT_TOO_LONG when an attention prefix leaves too little of the context; RuntimeError
   *   RUN_CANCELLED. Prompts that have entered stay, the rest is lost.
   */
  advance(signal?: AbortSignal): Promise<number>;
}

/** Prompts that have been read together. */
export interface ReadPrompts {
  readonly prompts: readonly BatchPrompt[];
  /** The adapter of each. */
  readonly residents: readonly Resident[];
  readonly reading: PromptReading;
  /** Where their keys and values are, from row 0 on; undefined: in the batch's next rows. */
  readonly apart: KvCache | undefined;
}

/** What a batch does for its admissions. */
export interface AdmittingBatch {
  readonly residents: Residents;
  /** Positions that a prompt and its answer take at most, where the prompt does not say. */
  readonly longest: number;
  /** The next rows, with room for so many of so many positions. */
  place(room: Extent): { readonly cache: KvCache; readonly first: number };
  /** Makes rows of them. */
  enter(read: ReadPrompts): Promise<void>;
}

/** @param sliceTokens undefined: nothing is sliced, as many prompts are read together as one run may */
export class PromptAdmission implements Admission {
  readonly #shared: Shared;
  readonly #batch: AdmittingBatch;
  readonly #sliceTokens: number | undefined;
  readonly #queue: BatchPrompt[];
  #current: ReadPrompts | undefined;

  constructor(shared: Shared, batch: AdmittingBatch, prompts: readonly BatchPrompt[], sliceTokens: number | undefined) {
    this.#shared = shared;
    this.#batch = batch;
    this.#queue = [...prompts];
    this.#sliceTokens = sliceTokens;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  async advance(signal?: AbortSignal): Promise<number> {
    if (this.#queue.length === 0) return 0;
    try {
      this.#current ??= await this.#begin();
      if (!(await this.#current.reading.advance(signal))) return 0;
      await this.#batch.enter(this.#current);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    const entered = this.#current.prompts.length;
    this.#queue.splice(0, entered);
    this.#close();
    return entered;
  }

  [Symbol.dispose](): void {
    this.#queue.length = 0;
    this.#close();
  }

  async #begin(): Promise<ReadPrompts> {
    const residents: Resident[] = [];
    let apart: KvCache | undefined;
    try {
      const prompts = await this.#next(residents);
      const { prefix } = residents[0]!;
      this.#check(prefix, prompts);
      const width = Math.max(...prompts.map(({ tokens }) => tokens.length));
      // Rows come and go between the slices of a long one.
      if (prompts.length === 1 && width > (this.#sliceTokens ?? Number.POSITIVE_INFINITY)) {
        apart = this.#shared.pool.cache(this.#shared.backbone.config, 1, prefix + width);
      }
      const read = prompts.map(({ tokens, scope }, i) => ({ adapter: residents[i]!, tokens, scope }));
      const reading = new PromptReading(this.#shared, read, {
        positions: prompts.map(({ tokens }, row) => [row, tokens.length - 1]),
        ...(apart
          ? { cache: apart, first: 0 }
          : this.#batch.place({ rows: prompts.length, positions: prefix + width })),
        shares: true,
        sliceTokens: this.#sliceTokens,
      });
      return { residents, prompts, reading, apart };
    } catch (error) {
      apart?.[Symbol.dispose]();
      for (const resident of residents) this.#batch.residents.leave(resident);
      throw error;
    }
  }

  /** The next prompts that are read together: of one adapter, or of several that take items. Their adapters enter. */
  async #next(residents: Resident[]): Promise<BatchPrompt[]> {
    const pass = new Together(this.#sliceTokens ?? PREFILL_TOKENS);
    const { prefixes } = this.#shared;
    const prompts: BatchPrompt[] = [];
    for (const [at, prompt] of this.#queue.entries()) {
      if (!pass.join(prompt.tokens.length)) break;
      const apart = prefixes?.standsApart(prompt, this.#queue[at + 1]) ?? false;
      if (at > 0 && apart) break;
      const resident = await this.#batch.residents.enter(prompt.adapter);
      if (at > 0 && !readTogether(residents[0]!, resident)) {
        this.#batch.residents.leave(resident);
        break;
      }
      residents.push(resident);
      prompts.push(prompt);
      if (apart) break;
    }
    return prompts;
  }

  #check(prefix: number, prompts: readonly BatchPrompt[]): void {
    const { context } = this.#shared;
    const needed = Math.max(...prompts.map(({ longest }) => longest ?? this.#batch.longest));
    if (prefix + needed <= context) return;
    const text = `the adapter's prefix takes ${prefix} of ${context} positions, prompt and new tokens up to ${needed}`;
    throw new InputError("PROMPT_TOO_LONG", "generation", `${text}: shorten the prompt or ask for fewer new tokens`);
  }

  #close(): void {
    const current = this.#current;
    if (!current) return;
    this.#current = undefined;
    current.reading[Symbol.dispose]();
    current.apart?.[Symbol.dispose]();
    for (const resident of current.residents) this.#batch.residents.leave(resident);
  }
}

/** Whether the prompts of two adapters can be read in one pass. */
function readTogether(a: Resident, b: Resident): boolean {
  return a.id === b.id || (takesItems(a) && takesItems(b));
}
