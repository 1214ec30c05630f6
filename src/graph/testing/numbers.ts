/** @file Plain numbers in place of tensors: what the tests of this room compute their expectations with. */
import { sum } from "../../base/index.ts";
import type { DType } from "../../runtime/index.ts";
import type { Value } from "../graph.ts";
import { type Feed, type Numbers, normals } from "./run.ts";

export interface Case {
  inputs: readonly Feed[];
  build: (inputs: Value[]) => Value | readonly Value[];
  expected: (inputs: readonly Feed[]) => Numbers | readonly Numbers[];
  /** Largest difference. Default 1e-5. */
  tolerance?: number;
}

export const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

export function feed(shape: readonly number[], seed = 1, dtype: DType = "float32"): Feed {
  return { dtype, shape, data: normals(seed, count(shape)).map(Math.fround) };
}

export const ints = (shape: readonly number[], data: readonly number[], dtype: DType = "int64"): Feed => ({
  dtype,
  shape,
  data,
});

/** Index of a flat position. */
export function indexOf(shape: readonly number[], flat: number): number[] {
  const index = new Array<number>(shape.length);
  let rest = flat;
  for (let i = shape.length - 1; i >= 0; i--) {
    index[i] = rest % shape[i]!;
    rest = Math.floor(rest / shape[i]!);
  }
  return index;
}

/** Element at an index, broadcasting sizes of 1 and leading axes. */
export function at({ shape, data }: Numbers, index: readonly number[]): number {
  let flat = 0;
  shape.forEach((size, i) => {
    flat = flat * size + (size === 1 ? 0 : index[index.length - shape.length + i]!);
  });
  return data[flat]!;
}

export const make = (shape: readonly number[], f: (index: number[]) => number): Numbers => ({
  shape,
  data: Array.from({ length: count(shape) }, (_, flat) => f(indexOf(shape, flat))),
});

export const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

export const rowsOf = ({ shape, data }: Numbers): number[][] => {
  const width = shape.at(-1)!;
  return range(data.length / width).map((i) => data.slice(i * width, (i + 1) * width));
};

export const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
export const softmax = (row: number[]): number[] => row.map((x) => Math.exp(x) / sum(row.map(Math.exp)));

/** Error function by its Taylor series; exact to double precision for |x| < 4. */
export function erf(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; n < 120; n++) {
    term *= -(x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

export const positive = (x: number): number => Math.abs(x) + 0.5;
