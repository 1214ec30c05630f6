/** @file Quantisation that is faithful to a model's inputs: the error of each weight is made up for by those after it. */
import { setImmediate } from "node:timers/promises";
import { float16Value } from "../base/index.ts";
import { type QuantizedLinear, scaleBits } from "./quantize.ts";

/**
 * The second moments H = Σ xᵀx of a weight's inputs, as H = M D Mᵀ with M upper triangular and ones on its diagonal.
 * For errors e of a row's weights, e H eᵀ = Σ_k d_k (e_k + Σ_{i<k} e_i m_ik)²: whoever rounds weight k to the level
 * nearest to w_k + Σ_{i<k} e_i m_ik makes each summand as small as it can be, one after the other. That is GPTQ
 * (Frantar et al. 2023), without the inverse of H that its own formulas use.
 */
export interface Factors {
  readonly width: number;
  /** Row k holds m_ik for i < k: float32 [in, in]. */
  readonly columns: Float32Array;
  /** d, float64 [in]: how much an error in each weight costs. */
  readonly costs: Float64Array;
}

/** Added to the diagonal of H, of its mean: inputs that hardly ever differ from zero must not be free. */
const DAMPING = 0.01;
/** Multiplications between two pauses for the event loop. */
const PAUSE = 2 ** 26;

/** O(in³ / 3); gives way to the event loop. */
export async function factorize(moments: Float64Array): Promise<Factors> {
  const width = Math.sqrt(moments.length);
  const m = Float64Array.from(moments); // becomes M, row by row, above its diagonal
  let mean = 0;
  for (let i = 0; i < width; i++) mean += m[i * width + i]! / width;
  for (let i = 0; i < width; i++) m[i * width + i]! += DAMPING * mean || 1; // or nothing has been seen
  const costs = new Float64Array(width);
  const scaled = new Float64Array(width); // d_k m_jk
  let work = 0;
  for (let j = width - 1; j >= 0; j--) {
    const row = m.subarray(j * width, (j + 1) * width);
    let cost = row[j]!;
    for (let k = j + 1; k < width; k++) {
      scaled[k] = costs[k]! * row[k]!;
      cost -= scaled[k]! * row[k]!;
    }
    costs[j] = cost;
    for (let i = 0; i < j; i++) {
      const start = i * width;
      let even = m[start + j]!;
      let odd = 0;
      let k = j + 1;
      for (; k + 1 < width; k += 2) {
        even -= m[start + k]! * scaled[k]!;
        odd -= m[start + k + 1]! * scaled[k + 1]!;
      }
      if (k < width) even -= m[start + k]! * scaled[k]!;
      m[start + j] = (even + odd) / cost;
    }
    work += j * (width - j);
    if (work > PAUSE) {
      work = 0;
      await setImmediate();
    }
  }
  const columns = new Float32Array(width * width);
  for (let k = 0; k < width; k++) for (let i = 0; i < k; i++) columns[k * width + i] = m[i * width + k]!;
  return { width, columns, costs };
}

/** Scales tried for a block, as in `quantizeRows` but finer and to both ends of the range: there is time. */
const STRETCHES = [1, 0.7, 0.76, 0.82, 0.88, 0.94, 1.06, 1.12, 1.18];

/** The scale of a block with the least Σ cost · error², after least squares for its levels. */
function scaleOf(block: Float64Array, costs: Float64Array, lowest: number, top: number): number {
  let extreme = 0;
  for (const x of block) if (Math.abs(x) > Math.abs(extreme)) extreme = x;
  let best = 0;
  let scale = 0;
  if (extreme === 0) return 0;
  for (const end of [lowest, -lowest]) {
    for (const stretch of STRETCHES) {
      const inverse = (end * stretch) / extreme;
      let xq = 0;
      let qq = 0;
      for (let i = 0; i < block.length; i++) {
        const q = Math.min(top, Math.max(lowest, Math.round(block[i]! * inverse)));
        xq += costs[i]! * block[i]! * q;
        qq += costs[i]! * q * q;
      }
      if (qq > 0 && (xq * xq) / qq > best) {
        best = (xq * xq) / qq;
        scale = xq / qq;
      }
    }
  }
  return scale;
}

/** As `quantizeRows`, for numbers that are finite. O(in² / 2) a row; gives way to the event loop. */
export async function quantizeRowsFaithfully(
  rows: Float32Array,
  target: QuantizedLinear,
  firstRow: number,
  { columns, costs }: Factors,
): Promise<void> {
  const { bits, blockSize, inFeatures: width, quantized, scales } = target;
  const blocks = Math.ceil(width / blockSize);
  const zero = bits === 4 ? 8 : 128;
  const errors = new Float32Array(width);
  const count = rows.length / width;
  let work = 0;
  for (let row = 0; row < count; row++) {
    const start = row * width;
    for (let b = 0; b < blocks; b++) {
      const from = b * blockSize;
      const length = Math.min(blockSize, width - from);
      const wanted = new Float64Array(length);
      for (let k = 0; k < length; k++) {
        const column = (from + k) * width;
        let even = 0;
        let odd = 0;
        for (let i = 0; i < from; i += 2) {
          even += errors[i]! * columns[column + i]!;
          odd += errors[i + 1]! * columns[column + i + 1]!;
        }
        wanted[k] = rows[start + from + k]! + even + odd;
      }
      const best = scaleOf(wanted, costs.subarray(from, from + length), -zero, zero - 1);
      const index = (firstRow + row) * blocks + b;
      scales[index] = scaleBits(best, "weight", firstRow + row);
      const scale = float16Value(scales[index]!);
      const first = index * blockSize;
      for (let k = 0; k < blockSize; k++) {
        let level = 0;
        if (k < length) {
          const column = (from + k) * width + from;
          let x = wanted[k]!;
          for (let i = 0; i < k; i++) x += errors[from + i]! * columns[column + i]!;
          if (scale !== 0) level = Math.min(zero - 1, Math.max(-zero, Math.round(x / scale)));
          errors[from + k] = rows[start + from + k]! - level * scale;
        }
        const stored = level + zero;
        const at = first + k;
        if (bits === 8) quantized[at] = stored;
        else if (k % 2 === 0) quantized[at >> 1] = stored;
        else quantized[at >> 1]! |= stored << 4;
      }
    }
    work += (width * width) / 2;
    if (work > PAUSE) {
      work = 0;
      await setImmediate();
    }
  }
}
