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
