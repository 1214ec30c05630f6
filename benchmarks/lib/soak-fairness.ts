/** @file Do tenants who always want more get what is theirs? What was served to each, by its weight, and Jain's index of that. */
import { quantile } from "./statistics.ts";

/** As the scheduler counts: a token that was read for 1, one that was generated for 2. */
export const READ = 1;
export const GENERATED = 2;

/** A window ends when so much was served to a tenant on average … */
const LEAST_SERVED = 2000;
/** … and so long after it began. */
const LEAST_MS = 15_000;
/** Part of a window's service between two samples: after more, nobody has seen who waited. */
const LARGEST_GAP = 0.25;

/** One that waits may be an answer that has not been read yet. */
const LEAST_WAITING = 2;

/** A tenant that always has requests waiting. */
export interface Backlogged {
  readonly id: string;
  readonly key: string;
  readonly weight: number;
  /** Requests that it has open at a time. */
  readonly streams: number;
  /** Most tokens of a prompt and of an answer. */
  readonly prompt: number;
  readonly answer: number;
  /** What it was served. */
  service: number;
  /** Requests without a whole answer. */
  open: number;
}

/** (Σx)² / (n Σx²): 1 where all have the same, 1/n where one has everything (Jain, Chiu and Hawe, 1984). */
export function jain(values: readonly number[]): number {
  const sum = values.reduce((a, b) => a + b, 0);
  return sum ** 2 / (values.length * values.reduce((a, b) => a + b * b, 0));
}

export interface Window {
  readonly seconds: number;
  /** Of tenants of equal weights, and of all by their weights. */
  readonly equal: number;
  readonly weighted: number;
  /** What each was served by its weight. */
  readonly shares: Readonly<Record<string, number>>;
}

export interface FairnessReport {
  readonly windows: readonly Window[];
  /** Windows in which a tenant did not wait for once, or that nobody looked at: what it got was its own choice. */
  readonly leftOut: number;
  readonly equal: { readonly median: number; readonly least: number };
  readonly weighted: { readonly median: number; readonly least: number };
}

export class Windows {
  readonly #tenants: readonly Backlogged[];
  readonly #windows: Window[] = [];
  #leftOut = 0;
  #began = performance.now();
  /** Of all, at the last sample. */
  #sampled = 0;
  #before: readonly number[];
  #waited = true;

  constructor(tenants: readonly Backlogged[]) {
    this.#tenants = tenants;
    this.#before = tenants.map(({ service }) => service);
  }

  /** To be called about once a second. @param waiting requests that do not run, by tenant */
  sample(waiting: ReadonlyMap<string, number>): void {
    const now = performance.now();
    const served = this.#tenants.map(({ service }, i) => service - this.#before[i]!);
    const total = served.reduce((a, b) => a + b, 0);
    if (total - this.#sampled > LARGEST_GAP * LEAST_SERVED * served.length) this.#waited = false;
    this.#sampled = total;
    if (this.#tenants.some(({ id }) => (waiting.get(id) ?? 0) < LEAST_WAITING)) this.#waited = false;
    if (now - this.#began < LEAST_MS || total < LEAST_SERVED * served.length) return;
    if (this.#waited) this.#windows.push(this.#window(served, now));
    else this.#leftOut++;
    this.#began = now;
    this.#sampled = 0;
    this.#before = this.#tenants.map(({ service }) => service);
    this.#waited = true;
  }

  report(): FairnessReport {
    const of = (key: "equal" | "weighted") => {
      const values = this.#windows.map((window) => window[key]);
      return { median: quantile(values, 0.5), least: values.length === 0 ? Number.NaN : Math.min(...values) };
    };
    return { windows: this.#windows, leftOut: this.#leftOut, equal: of("equal"), weighted: of("weighted") };
  }

  #window(served: readonly number[], now: number): Window {
    const shares = served.map((service, i) => service / this.#tenants[i]!.weight);
    return {
      seconds: Math.round((now - this.#began) / 100) / 10,
      equal: jain(shares.filter((_, i) => this.#tenants[i]!.weight === 1)),
      weighted: jain(shares),
      shares: Object.fromEntries(this.#tenants.map(({ id }, i) => [id, Math.round(shares[i]!)])),
    };
  }
}
