/** @file The learned activation function: a rational function of orders (6, 5) that begins as GELU (eq. 6). */
import { abs, add, concat, div, gemm, mul, reshape, sizeOf, slice, split, square, type Value } from "../graph/index.ts";
import type { ParameterSpec } from "./method.ts";

/**
 * Least-squares fit of Ra(x) = Σ a_j x^j / (1 + |Σ b_i x^i|) to GELU on [-3, 3] (orders 6 and 5).
 * The fit is made by test/reference/rational.py; a test holds its largest error there below 1e-3.
 */
export const geluNumerator: readonly number[] = [
  2.79785236e-5, 0.5, 0.398502916, 0.162250817, 0.0640100688, 0.018305501, 0.00209952891,
];
export const geluDenominator: readonly number[] = [0, 0.324501634, 0, 0.0366110019, 0];

/** Coefficients of one rational activation, under a path such as `….milora_router.activation`. */
export function rationalKeys(path: string): { numerator: string; denominator: string } {
  return { numerator: `${path}.numerator`, denominator: `${path}.denominator` };
}

/** They are Θ of the bi-level loop. */
export function rationalSpecs(path: string): ParameterSpec[] {
  const { numerator, denominator } = rationalKeys(path);
  const spec = (key: string, values: readonly number[]): ParameterSpec => ({
    key,
    shape: [values.length],
    init: { kind: "values", values },
    group: "activation",
  });
  return [spec(numerator, geluNumerator), spec(denominator, geluDenominator)];
}

/** The coefficients as a matrix over the powers x … x⁶, numerator above denominator, and what stands before them. */
export interface RationalCoefficients {
  readonly matrix: Value; // [2, 6]
  readonly constants: Value; // [2, 1]
}

/** From numerator [7] and denominator [5]. */
export function rationalCoefficients(numerator: Value, denominator: Value): RationalCoefficients {
  const zero = numerator.graph.constant("float32", [1, 1], [0]);
  const a = reshape(numerator, [1, geluNumerator.length]);
  const b = concat([reshape(denominator, [1, geluDenominator.length]), zero], 1); // [1, 6]
  return { matrix: concat([slice(a, 1, 1), b], 0), constants: concat([slice(a, 1, 0, 1), zero], 0) };
}

/**
 * Eq. 6, elementwise. The two polynomials are one product of the coefficients with the powers of all elements: half
 * the nodes of Horner's rule, which is what counts for the few elements of one token.
 */
export function rational(x: Value, { matrix, constants }: RationalCoefficients): Value {
  const x1 = reshape(x, [1, sizeOf(x.shape)]);
  const x2 = square(x1);
  const x3 = mul(x2, x1);
  const x4 = square(x2);
  const powers = concat([x1, x2, x3, x4, mul(x4, x1), square(x3)], 0); // [6, elements]
  const [p, q] = split(gemm(matrix, powers, { c: constants }), 0, [1, 1]); // [1, elements] each
  return reshape(div(p!, add(abs(q!), 1)), x.shape);
}
