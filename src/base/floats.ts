/** @file Half-precision floats, which JavaScript has no arrays for: bit patterns in Uint16Array to and from float32. */

let halfTable: Uint32Array | undefined;

/** float32 bit patterns of all 65,536 float16 values (IEEE 754 binary16), NaN payloads and signed zeros included. */
function float16Table(): Uint32Array {
  if (halfTable) return halfTable;
  halfTable = new Uint32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = (bits & 0x8000) << 16;
    const exponent = (bits >>> 10) & 0x1f;
    let mantissa = bits & 0x3ff;
    let value: number;
    if (exponent === 31) value = 0x7f800000 | (mantissa << 13);
    else if (exponent > 0) value = ((exponent + 112) << 23) | (mantissa << 13);
    else if (mantissa === 0) value = 0;
    else {
      // A subnormal: shift the leading one into place.
      let shift = 0;
      while ((mantissa & 0x400) === 0) {
        mantissa <<= 1;
        shift++;
      }
      value = ((113 - shift) << 23) | ((mantissa & 0x3ff) << 13);
    }
    halfTable[bits] = (sign | value) >>> 0;
  }
  return halfTable;
}

let halfValues: Float32Array | undefined;

/** The number of a float16 bit pattern; nothing is allocated, so that it may be called for each of millions. */
export function float16Value(bits: number): number {
  halfValues ??= new Float32Array(float16Table().buffer);
  return halfValues[bits]!;
}

/** Writes `source` (bfloat16 bit patterns) to `target` as float32; exact. */
export function bfloat16ToFloat32(source: Uint16Array, target: Float32Array): void {
  const bits = new Uint32Array(target.buffer, target.byteOffset, source.length);
  for (let i = 0; i < source.length; i++) bits[i] = source[i]! << 16;
}

/** Writes `source` (float16 bit patterns) to `target` as float32; exact. */
export function float16ToFloat32(source: Uint16Array, target: Float32Array): void {
  const table = float16Table();
  const bits = new Uint32Array(target.buffer, target.byteOffset, source.length);
  for (let i = 0; i < source.length; i++) bits[i] = table[source[i]!]!;
}

/** Rounds float32 to bfloat16 bit patterns, ties to even; NaN stays NaN. */
export function float32ToBfloat16(source: Float32Array): Uint16Array {
  const bits = new Uint32Array(source.buffer, source.byteOffset, source.length);
  const result = new Uint16Array(source.length);
  for (let i = 0; i < bits.length; i++) {
    const value = bits[i]!;
    result[i] =
      (value & 0x7fffffff) > 0x7f800000 ? (value >>> 16) | 0x40 : (value + 0x7fff + ((value >>> 16) & 1)) >>> 16;
  }
  return result;
}

const single = new Float32Array(2);
const singleBits = new Uint32Array(single.buffer);

/** The float16 bit pattern nearest to a float32 number, ties to even; what is too large becomes infinite, NaN stays NaN. */
export function float16Bits(value: number): number {
  single[0] = value;
  const bits = singleBits[0]!;
  const size = bits & 0x7fffffff;
  let rounded: number;
  if (size > 0x7f800000) rounded = 0x7e00;
  else if (size >= 0x477ff000)
    rounded = 0x7c00; // 65520 and more
  else if (size >= 0x38800000) rounded = (size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13;
  else {
    // Below 2^-14: added to 1/2, whose last bit is worth 2^-24, the sum is rounded to a multiple of that.
    single[1] = Math.abs(single[0]) + 0.5;
    rounded = singleBits[1]! - 0x3f000000;
  }
  return ((bits >>> 16) & 0x8000) | rounded;
}

/** Rounds float32 to float16 bit patterns, see `float16Bits`. */
export function float32ToFloat16(source: Float32Array): Uint16Array {
  const result = new Uint16Array(source.length);
  for (let i = 0; i < source.length; i++) result[i] = float16Bits(source[i]!);
  return result;
}
