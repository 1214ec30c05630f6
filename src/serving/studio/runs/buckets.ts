/** @file Quantities of a run's steps in a bounded number of buckets: mean, least and largest, however many steps there are. */

/** Names of quantities that are kept; those beyond are of no run that milora writes. */
const MOST_COLUMNS = 40;

/** What one quantity was in each bucket. Steps without it, or where it was not finite, are not counted. */
interface Column {
  sum: Float64Array;
  min: Float64Array;
  max: Float64Array;
  count: Uint32Array;
}

export interface Points {
  /** First step of each point. */
  readonly step: number[];
  readonly series: { name: string; mean: (number | null)[]; min: (number | null)[]; max: (number | null)[] }[];
}

function grown<A extends Float64Array | Uint32Array>(array: A, length: number): A {
  const larger = new (array.constructor as new (length: number) => A)(length);
  larger.set(array);
  return larger;
}

/**
 * Rows in the order of their steps. A bucket holds `width` rows; when there would be more than `most` buckets, each two
 * become one and the width doubles.
 */
export class Buckets {
  readonly #most: number;
  readonly #columns = new Map<string, Column>();
  #width: number;
  #capacity = 64;
  #rows = 0;
  /** First step of each bucket, and where in the file its first row begins. */
  #step = new Float64Array(this.#capacity);
  #offset = new Float64Array(this.#capacity);

  constructor(most: number, width = 1) {
    this.#most = most;
    this.#width = width;
  }

  get rows(): number {
    return this.#rows;
  }

  /** Rows of a bucket; the last may have fewer. */
  get width(): number {
    return this.#width;
  }

  get length(): number {
    return Math.ceil(this.#rows / this.#width);
  }

  /** The next row. */
  add(step: number, offset: number, values: Iterable<readonly [name: string, value: number | null]>): void {
    if (this.#rows === this.#most * this.#width) this.#halve();
    const bucket = Math.floor(this.#rows / this.#width);
    if (bucket === this.#capacity) this.#grow();
    if (this.#rows % this.#width === 0) {
      this.#step[bucket] = step;
      this.#offset[bucket] = offset;
    }
    this.#rows++;
    for (const [name, value] of values) {
      if (value === null) continue;
      const column = this.#column(name);
      if (column === undefined) continue;
      const first = column.count[bucket] === 0;
      column.count[bucket]! += 1;
      column.sum[bucket]! += value;
      if (first || value < column.min[bucket]!) column.min[bucket] = value;
      if (first || value > column.max[bucket]!) column.max[bucket] = value;
    }
  }

  /** Buckets [first, end) that hold the steps from `from` to `to`. */
  between(from: number, to: number): [first: number, end: number] {
    const after = (step: number): number => {
      let [low, high] = [0, this.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.#step[middle]! <= step) low = middle + 1;
        else high = middle;
      }
      return low; // buckets that begin at this step or before
    };
    return [Math.max(0, after(from) - 1), after(to)];
  }

  /** Where in the file a bucket begins; undefined after the last. */
  offsetOf(bucket: number): number | undefined {
    return bucket < this.length ? this.#offset[bucket] : undefined;
  }

  /** Buckets [first, end) as at most `most` points. */
  points(first: number, end: number, most: number): Points {
    const each = Math.max(1, Math.ceil((end - first) / most));
    const starts: number[] = [];
    for (let start = first; start < end; start += each) starts.push(start);
    return {
      step: starts.map((start) => this.#step[start]!),
      series: [...this.#columns].map(([name, { sum, min, max, count }]) => {
        const part: Points["series"][number] = { name, mean: [], min: [], max: [] };
        for (const start of starts) {
          let [total, rows, least, largest] = [0, 0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
          for (let i = start; i < Math.min(end, start + each); i++) {
            if (count[i] === 0) continue;
            total += sum[i]!;
            rows += count[i]!;
            least = Math.min(least, min[i]!);
            largest = Math.max(largest, max[i]!);
          }
          // Rounding takes the mean of equal numbers off them.
          part.mean.push(rows ? Math.min(largest, Math.max(least, total / rows)) : null);
          part.min.push(rows ? least : null);
          part.max.push(rows ? largest : null);
        }
        return part;
      }),
    };
  }

  #column(name: string): Column | undefined {
    const known = this.#columns.get(name);
    if (known !== undefined || this.#columns.size === MOST_COLUMNS) return known;
    const values = () => new Float64Array(this.#capacity);
    const column = { sum: values(), min: values(), max: values(), count: new Uint32Array(this.#capacity) };
    this.#columns.set(name, column);
    return column;
  }

  #grow(): void {
    this.#capacity = Math.min(this.#most, 2 * this.#capacity);
    this.#step = grown(this.#step, this.#capacity);
    this.#offset = grown(this.#offset, this.#capacity);
    for (const column of this.#columns.values()) {
      column.sum = grown(column.sum, this.#capacity);
      column.min = grown(column.min, this.#capacity);
      column.max = grown(column.max, this.#capacity);
      column.count = grown(column.count, this.#capacity);
    }
  }

  /** Each two buckets become one. `most` is even, so that all of them are full. */
  #halve(): void {
    const half = this.#most / 2;
    for (let i = 0; i < half; i++) {
      this.#step[i] = this.#step[2 * i]!;
      this.#offset[i] = this.#offset[2 * i]!;
    }
    for (const { sum, min, max, count } of this.#columns.values()) {
      for (let i = 0; i < half; i++) {
        const [a, b] = [2 * i, 2 * i + 1];
        const [hasA, hasB] = [count[a]! > 0, count[b]! > 0];
        min[i] = hasA && hasB ? Math.min(min[a]!, min[b]!) : min[hasA ? a : b]!;
        max[i] = hasA && hasB ? Math.max(max[a]!, max[b]!) : max[hasA ? a : b]!;
        sum[i] = sum[a]! + sum[b]!;
        count[i] = count[a]! + count[b]!;
      }
      for (const values of [sum, min, max, count]) values.fill(0, half);
    }
    this.#width *= 2;
  }
}

/** More cells than any backbone has. */
const MOST_CELLS = 16_384;

/** Shares of experts, [layers][experts] a row, as means over buckets. */
export class ShareBuckets {
  readonly #most: number;
  /** [layers, experts] of the first row; rows of another shape are left out. */
  #shape: readonly [number, number] | undefined;
  #width = 1;
  #rows = 0;
  readonly #step: number[] = [];
  readonly #sums: Float64Array[] = [];
  readonly #counts: number[] = [];

  constructor(most: number) {
    this.#most = most;
  }

  get shape(): readonly [layers: number, experts: number] | undefined {
    return this.#shape;
  }

  add(step: number, shares: readonly (readonly (number | null)[])[]): void {
    const [layers, experts] = [shares.length, shares[0]?.length ?? 0];
    if (layers * experts === 0 || layers * experts > MOST_CELLS) return;
    this.#shape ??= [layers, experts];
    if (layers !== this.#shape[0] || shares.some((layer) => layer.length !== this.#shape![1])) return;
    if (shares.some((layer) => layer.includes(null))) return;
    if (this.#rows === this.#most * this.#width) this.#halve();
    const bucket = Math.floor(this.#rows / this.#width);
    if (this.#rows % this.#width === 0) {
      this.#step[bucket] = step;
      this.#sums[bucket] = new Float64Array(layers * experts);
      this.#counts[bucket] = 0;
    }
    this.#rows++;
    this.#counts[bucket]!++;
    const sums = this.#sums[bucket]!;
    for (let l = 0; l < layers; l++) for (let e = 0; e < experts; e++) sums[l * experts + e]! += shares[l]![e]!;
  }

  /** At most `most` points: first steps, and shares [points][layers][experts]. */
  points(most: number): { step: number[]; shares: number[][][] } {
    if (this.#shape === undefined) return { step: [], shares: [] };
    const [layers, experts] = this.#shape;
    const each = Math.max(1, Math.ceil(this.#sums.length / most));
    const starts = Array.from({ length: Math.ceil(this.#sums.length / each) }, (_, i) => i * each);
    const shares = starts.map((start) => {
      const group = this.#sums.slice(start, start + each);
      const rows = this.#counts.slice(start, start + each).reduce((a, b) => a + b, 0);
      const mean = (cell: number) => group.reduce((sum, sums) => sum + sums[cell]!, 0) / rows;
      return Array.from({ length: layers }, (_, l) =>
        Array.from({ length: experts }, (_, e) => Number(mean(l * experts + e).toFixed(4))),
      );
    });
    return { step: starts.map((start) => this.#step[start]!), shares };
  }

  #halve(): void {
    const half = this.#most / 2;
    for (let i = 0; i < half; i++) {
      const [a, b] = [this.#sums[2 * i]!, this.#sums[2 * i + 1]!];
      for (let cell = 0; cell < a.length; cell++) a[cell]! += b[cell]!;
      this.#sums[i] = a;
      this.#counts[i] = this.#counts[2 * i]! + this.#counts[2 * i + 1]!;
      this.#step[i] = this.#step[2 * i]!;
    }
    for (const list of [this.#sums, this.#counts, this.#step]) list.length = half;
    this.#width *= 2;
  }
}
