/** @file Learned activation functions as functions of a number, to be looked at: what they became, and how far from GELU. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { SafetensorsFile } from "../models/index.ts";
import { WEIGHTS_FILE } from "./adapter.ts";

/** A learned rational activation function of one layer. */
export interface LearnedActivation {
  readonly layer: number;
  /** The sub-layer, where there is one function for each. */
  readonly block: string | undefined;
  readonly f: (x: number) => number;
  /** Largest distance from GELU, where it began, on `CURVE_RANGE`. */
  readonly deviation: number;
}

export const CURVE_RANGE = [-3, 3] as const;

/** Far more than any has. */
const MOST_COEFFICIENTS = 64;

const NUMERATOR = /\.layers\.(\d+)\.(?:(self_attn|mlp)\.)?.*activation\.numerator$/;

/** Those among an adapter's tensors, in their order; `values` reads one. */
export function learnedActivations(keys: Iterable<string>, values: (key: string) => Float32Array): LearnedActivation[] {
  return [...keys].flatMap((key) => {
    const [, layer, block] = NUMERATOR.exec(key) ?? [];
    if (layer === undefined) return [];
    const f = rational(values(key), values(key.replace(/numerator$/, "denominator")));
    return [{ layer: Number(layer), block, f, deviation: largestDeviation(f, gelu, ...CURVE_RANGE) }];
  });
}

/**
 * Those of an adapter's directory, of which nothing else is read; none where there is no adapter. Coefficients that
 * are not finite are left out. Throws `InputError` for a damaged file.
 */
export function readLearnedActivations(directory: string): LearnedActivation[] {
  const path = join(directory, WEIGHTS_FILE);
  if (!existsSync(path)) return [];
  using file = SafetensorsFile.open(path);
  const usable = new Set([...file.entries.values()].filter(({ size }) => size <= MOST_COEFFICIENTS).map((e) => e.name));
  const read = (key: string) => file.readFloat32(key, new Float32Array(file.entries.get(key)!.size));
  const whole = [...usable].filter((key) => {
    if (!key.endsWith("numerator")) return false;
    const below = key.replace(/numerator$/, "denominator");
    return usable.has(below) && [...read(key), ...read(below)].every(Number.isFinite);
  });
  return learnedActivations(whole, read);
}

/** Eq. 6 of the paper: Σ a_j x^j / (1 + |Σ b_i x^i|), with i from 1. */
function rational(numerator: Float32Array, denominator: Float32Array): (x: number) => number {
  const polynomial = (c: Float32Array, x: number) => c.reduceRight((sum, coefficient) => sum * x + coefficient, 0);
  return (x) => polynomial(numerator, x) / (1 + Math.abs(x * polynomial(denominator, x)));
}

/** GELU(x) = x·Φ(x), with erf after Abramowitz and Stegun 7.1.26 (error below 1.5e-7). */
export function gelu(x: number): number {
  const z = Math.abs(x) / Math.SQRT2;
  const t = 1 / (1 + 0.3275911 * z);
  const poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  const erf = 1 - poly * Math.exp(-z * z);
  return 0.5 * x * (1 + Math.sign(x) * erf);
}

/** Largest |f − g| on a grid of [from, to]. */
export function largestDeviation(f: (x: number) => number, g: (x: number) => number, from: number, to: number): number {
  let largest = 0;
  for (let i = 0; i <= 600; i++) {
    const x = from + ((to - from) * i) / 600;
    const difference = Math.abs(f(x) - g(x));
    if (!(difference <= largest)) largest = difference; // NaN counts as a deviation
  }
  return largest;
}
