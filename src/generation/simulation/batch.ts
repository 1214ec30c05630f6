/** @file Rows of a batch of which only the lengths are known, and how long an engine would take for them. */
import type { Adapter } from "../../methods/index.ts";
import { type Admission, type AdmissionOptions, type BatchPrompt, Together } from "../admission.ts";
import type { DecodingBatch } from "../batch.ts";
import { planSlices } from "../slices.ts";

/** What an engine takes for its work, in milliseconds. */
export interface EngineCosts {
  readonly layers: number;
  /** Whether prompts and rows of different adapters run together; else each adapter's by themselves. */
  readonly joins: boolean;
  /** Reading prompts in one pass. */
  read(pass: PassWork): number;
  /** A step of all rows. */
  step(step: StepWork): number;
}

export interface PassWork {
  /** Padding included. */
  readonly tokens: number;
  readonly prompts: number;
  readonly adapters: number;
}

export interface StepWork {
  /** Of neighbours of one adapter each; one number where `joins`. */
  readonly runs: readonly number[];
  readonly adapters: number;
  /** Positions in the cache, of all rows. */
  readonly positions: number;
  /** Rows have come or gone since the last step. */
  readonly changed: boolean;
}

/** The two tokens there are: one that goes on, and one that ends. */
export const END = 1;
const GOES_ON = Float32Array.of(1, 0);
const ENDS = Float32Array.of(0, 1);
const LOG_PROBS = Float32Array.of(0, 0);

/** Tokens of a slice where nothing else is asked for, as of a `Batch`. */
const SLICE_TOKENS = 256;

interface Row {
  readonly adapter: Adapter | undefined;
  /** Positions in the cache. */
  length: number;
  /** Tokens to come, that of its logits included. */
  left: number;
}

/** What a simulated batch works with. */
export interface Simulated {
  readonly costs: EngineCosts;
  /** Resolves when work of so many milliseconds is done. */
  spend(ms: number): Promise<void>;
  /** How many tokens the answer to a prompt has. */
  answerOf(prompt: readonly number[]): number;
}

export class SimulatedBatch implements DecodingBatch {
  readonly maxRows: number;
  readonly #simulated: Simulated;
  readonly #rows: Row[] = [];
  #changed = false;

  constructor(simulated: Simulated, maxRows: number) {
    this.#simulated = simulated;
    this.maxRows = maxRows;
  }

  get rows(): number {
    return this.#rows.length;
  }

  get adapters(): number {
    return new Set(this.#rows.map(({ adapter }) => adapter)).size;
  }

  logitsOf(row: number): Float32Array {
    return this.#rows[row]!.left > 1 ? GOES_ON : ENDS;
  }

  logProbsOf(): Float32Array {
    return LOG_PROBS;
  }

  route(): undefined {
    return undefined;
  }

  reused(): number {
    return 0;
  }

  async admit(prompts: readonly BatchPrompt[]): Promise<void> {
    using admission = new SimulatedAdmission(this.#simulated, this.#enter, prompts, undefined);
    while (admission.waiting > 0) await admission.advance();
  }

  begin(prompts: readonly BatchPrompt[], { sliceTokens = SLICE_TOKENS }: AdmissionOptions = {}): Admission {
    return new SimulatedAdmission(this.#simulated, this.#enter, prompts, sliceTokens);
  }

  async step(): Promise<void> {
    const { costs, spend } = this.#simulated;
    const positions = this.#rows.reduce((sum, { length }) => sum + length, 0);
    const runs = costs.joins ? [this.rows] : this.#runs();
    const changed = this.#changed;
    this.#changed = false;
    await spend(costs.step({ runs, adapters: this.adapters, positions, changed }));
    for (const row of this.#rows) {
      row.length++;
      row.left--;
    }
  }

  drop(row: number): void {
    this.#rows[row] = this.#rows.at(-1)!;
    this.truncate(this.rows - 1);
  }

  truncate(rows: number): void {
    this.#rows.length = rows;
    this.#changed = true;
  }

  copyRow(from: number, to: number): void {
    this.#rows[to] = { ...this.#rows[from]! };
    this.#changed = true;
  }

  [Symbol.dispose](): void {
    this.#rows.length = 0;
  }

  readonly #enter = (prompts: readonly BatchPrompt[]): void => {
    for (const { tokens, adapter } of prompts) {
      this.#rows.push({ adapter, length: tokens.length, left: this.#simulated.answerOf(tokens) });
    }
    this.#changed = true;
  };

  /** Neighbours of one adapter. */
  #runs(): number[] {
    const runs: number[] = [];
    let before: Row | undefined;
    for (const row of this.#rows) {
      if (before && before.adapter === row.adapter) runs.push(runs.pop()! + 1);
      else runs.push(1);
      before = row;
    }
    return runs;
  }
}

/** Reads in the passes and slices that `PromptAdmission` makes where no prompts are known already. */
class SimulatedAdmission implements Admission {
  readonly #simulated: Simulated;
  readonly #enter: (prompts: readonly BatchPrompt[]) => void;
  readonly #queue: BatchPrompt[];
  readonly #sliceTokens: number | undefined;
  #current: { readonly prompts: readonly BatchPrompt[]; readonly sliceMs: number; slices: number } | undefined;

  constructor(
    simulated: Simulated,
    enter: (prompts: readonly BatchPrompt[]) => void,
    prompts: readonly BatchPrompt[],
    sliceTokens: number | undefined,
  ) {
    this.#simulated = simulated;
    this.#enter = enter;
    this.#queue = [...prompts];
    this.#sliceTokens = sliceTokens;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  async advance(): Promise<number> {
    if (this.#queue.length === 0) return 0;
    this.#current ??= this.#begin();
    const current = this.#current;
    await this.#simulated.spend(current.sliceMs);
    if (--current.slices > 0) return 0;
    this.#enter(current.prompts);
    this.#queue.splice(0, current.prompts.length);
    this.#current = undefined;
    return current.prompts.length;
  }

  [Symbol.dispose](): void {
    this.#queue.length = 0;
  }

  #begin() {
    const { costs } = this.#simulated;
    const pass = new Together(this.#sliceTokens ?? Number.POSITIVE_INFINITY);
    const prompts: BatchPrompt[] = [];
    for (const prompt of this.#queue) {
      if (!pass.join(prompt.tokens.length)) break;
      if (prompts.length > 0 && !costs.joins && prompt.adapter !== prompts[0]!.adapter) break;
      prompts.push(prompt);
    }
    const width = Math.max(...prompts.map(({ tokens }) => tokens.length));
    const rows = prompts.length;
    const size = { rows, tokens: { from: 0, to: width }, layers: costs.layers, divisible: rows === 1 };
    const slices = planSlices(size, this.#sliceTokens ?? Number.POSITIVE_INFINITY).length;
    const adapters = new Set(prompts.map(({ adapter }) => adapter)).size;
    const ms = costs.read({ tokens: rows * width, prompts: rows, adapters });
    return { prompts, slices, sliceMs: ms / slices };
  }
}
