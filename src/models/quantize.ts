/** @file Blockwise quantisation of linear weights in the layout of ONNX Runtime's `MatMulNBits`. */
import { float16Bits, float16Value, InputError } from "../base/index.ts";

/**
 * Symmetric blockwise quantisation: every `blockSize` weights along the input share one float16 scale, the zero point
 * is implicit (8 for 4 bits, 128 for 8), and w ≈ (q − zero point) · scale.
 */
export interface QuantizedLinear {
  readonly bits: 4 | 8;
  readonly blockSize: number;
  /** N, the out features. */
  readonly outFeatures: number;
  /** K, the in features. Rows are padded with zeros to whole blocks. */
  readonly inFeatures: number;
  /** uint8 [N, ceil(K / blockSize), blockSize · bits / 8]; for 4 bits the earlier weight is in the low nibble. */
  readonly quantized: Uint8Array;
  /** float16 bit patterns [N · ceil(K / blockSize)] */
  readonly scales: Uint16Array;
}

export interface QuantizeOptions {
  readonly bits?: 4 | 8;
  /** A power of two from 16 to 256. */
  readonly blockSize?: number;
}

/** The sizes of a quantised [outFeatures, inFeatures] weight; `shape` is that of `quantized`. */
export function quantizedLayout(outFeatures: number, inFeatures: number, options: QuantizeOptions = {}) {
  const { bits = 4, blockSize = 32 } = options;
  if (![16, 32, 64, 128, 256].includes(blockSize)) {
    throw new RangeError(`block size ${blockSize}: MatMulNBits takes 16, 32, 64, 128 or 256`);
  }
  const perRow = Math.ceil(inFeatures / blockSize);
  const shape = [outFeatures, perRow, (blockSize * bits) / 8] as const;
  return { bits, blockSize, outFeatures, inFeatures, shape, blocks: outFeatures * perRow };
}

/** Quantises a float32 weight [outFeatures, inFeatures]. */
export function quantize(
  weight: Float32Array,
  outFeatures: number,
  inFeatures: number,
  options: QuantizeOptions = {},
): QuantizedLinear {
  const { shape, blocks, ...layout } = quantizedLayout(outFeatures, inFeatures, options);
  const quantized = new Uint8Array(shape[0] * shape[1] * shape[2]);
  const target: QuantizedLinear = { ...layout, quantized, scales: new Uint16Array(blocks) };
  quantizeRows(weight, target, 0);
  return target;
}

/**
 * How far the scale tried may lie from the one that maps the largest weight to the end of the range. A wider scale
 * clips that weight, a narrower one wastes a level; either may round the other weights better. On normal weights these
 * five give 7.5 % less squared error than the first alone, and 41 of them only another 1 %.
 */
const STRETCHES = [1, 0.88, 0.94, 1.06, 1.14];

/** 1.5 · 2^52: adding and subtracting it rounds a double to the nearest integer, much faster than Math.round. */
const ROUNDER = 6755399441055744;

/**
 * Quantises whole rows into `target`, from row `firstRow` on.
 *
 * For each block the scale first maps the weight of largest magnitude, with its sign, to the most negative level, which
 * has no positive counterpart. For each of a few scales around it the weights are rounded, and the best scale for these
 * levels follows by least squares, s = Σxq / Σq², with squared error Σx² − (Σxq)² / Σq²; the smallest error wins.
 * @param name the weight's, for the error
 * @throws InputError `WEIGHT_NOT_FINITE`
 */
export function quantizeRows(rows: Float32Array, target: QuantizedLinear, firstRow: number, name = "weight"): void {
  const { bits, blockSize, inFeatures, quantized, scales } = target;
  const blocksPerRow = Math.ceil(inFeatures / blockSize);
  const count = rows.length / inFeatures;
  const zero = bits === 4 ? 8 : 128;
  const lowest = -zero;
  const top = zero - 1;
  // With 256 levels there is next to nothing to win by trying other scales.
  const tries = bits === 4 ? STRETCHES.length : 1;
  const block = new Float64Array(blockSize);
  const levels = new Uint8Array(blockSize);
  for (let row = 0; row < count; row++) {
    for (let b = 0; b < blocksPerRow; b++) {
      const start = row * inFeatures + b * blockSize;
      const length = Math.min(blockSize, inFeatures - b * blockSize);
      let low = 0;
      let high = 0;
      let sum = 0;
      for (let i = 0; i < length; i++) {
        const x = rows[start + i]!;
        block[i] = x;
        sum += x;
        if (x < low) low = x;
        if (x > high) high = x;
      }
      if (!Number.isFinite(sum)) {
        throw new InputError("WEIGHT_NOT_FINITE", name, `row ${firstRow + row} holds a number that is not finite`);
      }
      for (let i = length; i < blockSize; i++) block[i] = 0;
      const extreme = -low > high ? low : high;
      let scale = 0;
      let inverse = 0;
      let best = -1;
      for (let t = 0; t < tries && extreme !== 0; t++) {
        const tried = (-zero * STRETCHES[t]!) / extreme;
        // Two sums each, so that one addition need not wait for the other.
        let xq = 0;
        let qq = 0;
        let xqOdd = 0;
        let qqOdd = 0;
        for (let i = 0; i < blockSize; i += 2) {
          const x = block[i]!;
          let q = x * tried + ROUNDER - ROUNDER;
          if (q > top) q = top;
          if (q < lowest) q = lowest;
          xq += x * q;
          qq += q * q;
          const xOdd = block[i + 1]!;
          let qOdd = xOdd * tried + ROUNDER - ROUNDER;
          if (qOdd > top) qOdd = top;
          if (qOdd < lowest) qOdd = lowest;
          xqOdd += xOdd * qOdd;
          qqOdd += qOdd * qOdd;
        }
        xq += xqOdd;
        qq += qqOdd;
        const gain = (xq * xq) / qq;
        if (gain > best) {
          best = gain;
          scale = xq / qq;
          inverse = tried;
        }
      }
      const index = (firstRow + row) * blocksPerRow + b;
      scales[index] = scaleBits(scale, name, firstRow + row);
      const first = (index * blockSize * bits) / 8;
      for (let i = 0; i < blockSize; i++) {
        let q = block[i]! * inverse + ROUNDER - ROUNDER;
        if (q > top) q = top;
        if (q < lowest) q = lowest;
        levels[i] = q + zero;
      }
      if (bits === 8) quantized.set(levels, first);
      else for (let i = 0; i < blockSize; i += 2) quantized[first + (i >> 1)] = levels[i]! | (levels[i + 1]! << 4);
    }
  }
}

/** A scale as it is stored. @throws InputError `WEIGHT_NOT_FINITE` where it is too large */
export function scaleBits(scale: number, name: string, row: number): number {
  const bits = float16Bits(scale);
  if ((bits & 0x7c00) === 0x7c00) {
    throw new InputError("WEIGHT_NOT_FINITE", name, `row ${row} holds a number too large to be quantised`);
  }
  return bits;
}

/** The float32 weight [outFeatures, inFeatures] that a quantised one stands for. */
export function dequantize(source: QuantizedLinear): Float32Array {
  const { bits, blockSize, outFeatures, inFeatures, quantized, scales } = source;
  const blocksPerRow = Math.ceil(inFeatures / blockSize);
  const result = new Float32Array(outFeatures * inFeatures);
  for (let row = 0; row < outFeatures; row++) {
    for (let k = 0; k < inFeatures; k++) {
      const index = row * blocksPerRow + Math.floor(k / blockSize);
      const element = index * blockSize + (k % blockSize);
      const level =
        bits === 8 ? quantized[element]! - 128 : ((quantized[element >> 1]! >> (4 * (element & 1))) & 15) - 8;
      result[row * inFeatures + k] = level * float16Value(scales[index]!);
    }
  }
  return result;
}
