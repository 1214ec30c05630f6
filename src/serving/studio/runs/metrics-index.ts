/** @file What a metrics.jsonl of any length says, kept in constant memory and brought up to date by reading what was appended. */
import { type FileHandle, open } from "node:fs/promises";
import { reasonOf } from "../../../base/index.ts";
import { type WrittenLine, writtenLineSchema } from "../../../training/index.ts";
import type { RunEvaluation, RunSeries } from "../types.ts";
import { Buckets, type Points, ShareBuckets } from "./buckets.ts";
import { type LineReader, readLines } from "./lines.ts";

const SERIES_BUCKETS = 4096;
const SHARE_BUCKETS = 256;
const MOST_EVALUATIONS = 512;
const MOST_LAYERS = 512;
const MOST_EXPERTS = 256;
/** Letters of a name. */
const MOST_LETTERS = 100;
/** What a look at a part of the steps reads again, at most; beyond it the buckets answer. */
const MOST_BYTES_AGAIN = 16 << 20;
/** A file in which the bytes before the place read up to are others is another file. */
const TAIL_BYTES = 256;

/** Of all that was read. */
export interface Totals {
  steps: number;
  lastStep: number;
  epoch: number;
  loss: number | null;
  tokens: number;
  seconds: number;
  best: { readonly step: number; readonly perplexity: number | null } | undefined;
  /** Lines that are no JSON, no line of a run, or of a step that was there before. */
  damagedLines: number;
  /** Names of the experts, where an evaluation has said them. */
  experts: readonly string[] | undefined;
  evaluations: RunEvaluation[];
}

const noTotals = (): Totals => ({
  ...{ steps: 0, lastStep: 0, epoch: 0, loss: null, tokens: 0, seconds: 0, best: undefined },
  ...{ damagedLines: 0, experts: undefined, evaluations: [] },
});

/** A line of a run, or undefined. */
function parseLine(text: string): WrittenLine | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  return writtenLineSchema.safeParse(value).data;
}

type WrittenStep = Extract<WrittenLine, { type: "step" }>;
type WrittenEvaluation = Extract<WrittenLine, { type: "evaluation" }>;

function* quantitiesOf(step: WrittenStep): Generator<readonly [string, number | null]> {
  yield ["loss", step.loss];
  yield ["lm_loss", step.lm_loss];
  yield ["lr", step.lr];
  yield ["grad_norm", step.grad_norm];
  yield ["tokens_per_second", step.tokens_per_second];
  for (const [name, value] of Object.entries(step.auxiliary)) {
    if (name.length <= MOST_LETTERS) yield [`auxiliary.${name}`, value];
  }
  if (step.activation) {
    yield ["activation.lr", step.activation.lr];
    yield ["activation.lm_loss", step.activation.lm_loss];
  }
}

/** Keeps what is read in one file. */
export class MetricsIndex implements LineReader {
  readonly path: string;
  readonly #signal: AbortSignal;
  #totals = noTotals();
  #series: Buckets | undefined = new Buckets(SERIES_BUCKETS);
  #shares: ShareBuckets | undefined = new ShareBuckets(SHARE_BUCKETS);
  /** Read up to here; within a line that is too long? */
  #offset = 0;
  #within = false;
  /** The bytes before `#offset`. */
  #tail: Uint8Array = new Uint8Array(0);
  /** Whether the file has been read to its end at least once. */
  #complete = false;
  /** The file when it was last looked at. */
  #seen = { inode: -1, size: 0, modified: 0 };
  #refreshing: Promise<void> | undefined;
  #version = 0;
  problem: string | undefined;

  constructor(path: string, signal: AbortSignal) {
    this.path = path;
    this.#signal = signal;
  }

  /** Another number whenever something has changed. */
  get version(): number {
    return this.#version;
  }

  get totals(): Readonly<Totals> {
    return this.#totals;
  }

  /** Share of the file that has been read. */
  get indexed(): number {
    if (this.problem !== undefined) return 1; // as much as can be had
    if (this.#refreshing === undefined || this.#seen.size === 0) return this.#complete ? 1 : 0;
    return Math.min(1, this.#offset / this.#seen.size);
  }

  /** Milliseconds since 1970. */
  get modified(): number {
    return this.#seen.modified;
  }

  /** Whether there is more than the totals in memory. */
  get loaded(): boolean {
    return this.#series !== undefined;
  }

  /** Drops all but the totals. */
  forget(): void {
    this.#series = undefined;
    this.#shares = undefined;
  }

  /** Sees to it that there is more than the totals, if it takes reading everything again. */
  async load(): Promise<void> {
    await this.#refreshing;
    if (!this.loaded) this.#reset();
    await this.refresh();
  }

  /** Reads what was appended. Calls while it reads wait for the same end. Never throws: see `problem`. */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#refresh().finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  /** A part of the steps, or all of them. Reads the file again where the buckets are too coarse and the part is small. */
  async series(from: number, to: number, most: number): Promise<RunSeries> {
    const series = this.#series ?? new Buckets(SERIES_BUCKETS);
    const { steps, lastStep } = this.#totals;
    const range = { from: Math.min(Math.max(from, 1), lastStep), to: Math.min(to, lastStep) };
    const [first, end] = series.between(range.from, range.to);
    const coarse = series.width > 1 && end - first < most;
    const start = series.offsetOf(first);
    const stop = series.offsetOf(end) ?? this.#offset;
    const finer =
      coarse && start !== undefined && stop - start <= MOST_BYTES_AGAIN
        ? await this.#again(range, start, stop, most).catch(() => undefined) // it was removed meanwhile
        : undefined;
    return { steps, ...range, indexed: this.indexed, ...(finer ?? series.points(first, end, most)) };
  }

  /** Shares of the experts, [points][layers][experts]; undefined where nothing was routed. */
  shares(most: number): ReturnType<ShareBuckets["points"]> | undefined {
    return this.#shares?.shape && this.#shares.points(most);
  }

  get expertShape(): ShareBuckets["shape"] {
    return this.#shares?.shape;
  }

  async #again(range: { from: number; to: number }, start: number, stop: number, most: number): Promise<Points> {
    const rows = range.to - range.from + 1;
    const buckets = new Buckets(most + (most % 2), Math.max(1, Math.ceil(rows / most)));
    await using file = await open(this.path);
    const line = (text: string, offset: number): void => {
      const step = parseLine(text);
      if (step?.type !== "step" || step.step < range.from || step.step > range.to) return;
      buckets.add(step.step, offset, quantitiesOf(step));
    };
    await readLines(file, { from: start, to: stop }, { line }, this.#signal);
    return buckets.points(0, buckets.length, most);
  }

  async #refresh(): Promise<void> {
    try {
      await using file = await open(this.path);
      const { ino, size, mtimeMs } = await file.stat();
      const { inode, size: before, modified } = this.#seen;
      if (this.#complete && ino === inode && size === before && mtimeMs === modified) return;
      if (ino !== inode || size < this.#offset || !(await this.#continues(file))) this.#reset();
      this.#seen = { inode: ino, size, modified: mtimeMs };
      this.#version++;
      this.#within = await readLines(file, { from: this.#offset, to: size, within: this.#within }, this, this.#signal);
      this.#tail = await this.#before(file);
      this.#complete = true;
      this.problem = undefined;
    } catch (error) {
      if (!this.#signal.aborted) this.problem = reasonOf(error);
    }
  }

  async #before(file: FileHandle): Promise<Uint8Array> {
    const length = Math.min(TAIL_BYTES, this.#offset);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, this.#offset - length);
    return buffer.subarray(0, bytesRead);
  }

  /** Whether what has been read is still there. A resumed run cuts its file and writes other times into it. */
  async #continues(file: FileHandle): Promise<boolean> {
    return this.#complete && Buffer.from(await this.#before(file)).equals(this.#tail);
  }

  #reset(): void {
    this.#totals = noTotals();
    this.#series = new Buckets(SERIES_BUCKETS);
    this.#shares = new ShareBuckets(SHARE_BUCKETS);
    this.#offset = 0;
    this.#within = false;
    this.#complete = false;
    this.#version++;
  }

  done(offset: number): void {
    this.#offset = offset;
  }

  tooLong(): void {
    this.#totals.damagedLines++;
  }

  line(text: string, offset: number): void {
    if (text === "") return;
    const line = parseLine(text);
    if (line?.type === "evaluation") this.#addEvaluation(line);
    else if (line !== undefined && line.step > this.#totals.lastStep) this.#addStep(line, offset);
    else this.#totals.damagedLines++;
  }

  #addStep(step: WrittenStep, offset: number): void {
    const totals = this.#totals;
    totals.steps++;
    totals.lastStep = step.step;
    totals.epoch = step.epoch;
    totals.loss = step.lm_loss;
    totals.tokens += step.tokens;
    totals.seconds += step.seconds;
    this.#series?.add(step.step, offset, quantitiesOf(step));
    if (step.expert_shares) this.#shares?.add(step.step, step.expert_shares);
  }

  #addEvaluation({ step, epoch, dev_loss, dev_perplexity, best, routing }: WrittenEvaluation): void {
    const totals = this.#totals;
    if (best) totals.best = { step, perplexity: dev_perplexity };
    if (routing) totals.experts = routing.experts.slice(0, MOST_EXPERTS).map((name) => name.slice(0, MOST_LETTERS));
    if (totals.evaluations.length === MOST_EVALUATIONS) {
      // Every second one goes; the best, of which there is one, stays.
      totals.evaluations = totals.evaluations.filter((kept, i) => i % 2 === 1 || kept.step === totals.best?.step);
    }
    totals.evaluations.push({
      ...{ step, epoch, loss: dev_loss, perplexity: dev_perplexity, best },
      entropy: routing ? routing.entropy.slice(0, MOST_LAYERS) : null,
      routes: routing?.routes ?? null,
    });
  }
}
