/** @file Weights of GGUF files as float32, block by block, with the arithmetic of ggml's reference (ggml-quants.c). */
import { bfloat16ToFloat32, float16ToFloat32, float16Value } from "../../base/index.ts";

/** Writes the weights of whole blocks to `target`. `bytes` begins on no particular boundary. */
type Dequantizer = (bytes: Uint8Array, target: Float32Array) => void;

const K = 256;

/** The float16 at `at`. */
function float16(bytes: Uint8Array, at: number): number {
  return float16Value(bytes[at]! | (bytes[at + 1]! << 8));
}

/** `bytes` as numbers of another width; copied where they are not aligned. */
function aligned(bytes: Uint8Array, width: number): { buffer: ArrayBufferLike; byteOffset: number } {
  return bytes.byteOffset % width === 0 ? bytes : bytes.slice();
}

const float32: Dequantizer = (bytes, target) => {
  const { buffer, byteOffset } = aligned(bytes, 4);
  target.set(new Float32Array(buffer, byteOffset, target.length));
};

const halves =
  (convert: (source: Uint16Array, target: Float32Array) => void): Dequantizer =>
  (bytes, target) => {
    const { buffer, byteOffset } = aligned(bytes, 2);
    convert(new Uint16Array(buffer, byteOffset, target.length), target);
  };

/** Blocks of 32 with 4 bits a weight: the first 16 weights in the low nibbles, the others in the high ones. */
function fourBits(size: number, head: number, offset: number, minimum: boolean): Dequantizer {
  return (bytes, target) => {
    for (let block = 0, out = 0; out < target.length; block += size, out += 32) {
      const d = float16(bytes, block);
      const m = minimum ? float16(bytes, block + 2) : -0; // adding -0 keeps the sign of zeros
      for (let i = 0; i < 16; i++) {
        const byte = bytes[block + head + i]!;
        target[out + i] = Math.fround(d * ((byte & 15) - offset)) + m;
        target[out + i + 16] = Math.fround(d * ((byte >> 4) - offset)) + m;
      }
    }
  };
}

/** As `fourBits`, with the fifth bits of the 32 weights in 4 bytes before the nibbles. */
function fiveBits(size: number, head: number, offset: number, minimum: boolean): Dequantizer {
  return (bytes, target) => {
    for (let block = 0, out = 0; out < target.length; block += size, out += 32) {
      const d = float16(bytes, block);
      const m = minimum ? float16(bytes, block + 2) : -0; // adding -0 keeps the sign of zeros
      for (let i = 0; i < 32; i++) {
        const high = (bytes[block + head - 4 + (i >> 3)]! >> (i & 7)) & 1;
        const nibble = (bytes[block + head + (i & 15)]! >> (i < 16 ? 0 : 4)) & 15;
        target[out + i] = Math.fround(d * ((nibble | (high << 4)) - offset)) + m;
      }
    }
  };
}

const q8_0: Dequantizer = (bytes, target) => {
  for (let block = 0, out = 0; out < target.length; block += 34, out += 32) {
    const d = float16(bytes, block);
    for (let i = 0; i < 32; i++) target[out + i] = d * ((bytes[block + 2 + i]! << 24) >> 24);
  }
};

/** Scale (`min` false) or minimum of the j-th 32 weights of a Q4_K or Q5_K block: 6 bits each, packed in 12 bytes. */
function sixBits(bytes: Uint8Array, at: number, j: number, min: boolean): number {
  const own = bytes[at + j + (min ? 4 : 0) - (j < 4 ? 0 : 4)]!;
  if (j < 4) return own & 63;
  const shared = bytes[at + 4 + j]!;
  return (min ? shared >> 4 : shared & 15) | ((own >> 6) << 4);
}

/** Q4_K and Q5_K: 256 weights in 8 parts, w = d · scale · q − dmin · min; Q5_K has the fifth bits before the nibbles. */
function kBlocks(size: number, fifth: boolean): Dequantizer {
  const nibbles = fifth ? 48 : 16;
  return (bytes, target) => {
    for (let block = 0, out = 0; out < target.length; block += size, out += K) {
      const d = float16(bytes, block);
      const dmin = float16(bytes, block + 2);
      for (let j = 0; j < 8; j++) {
        const scale = Math.fround(d * sixBits(bytes, block + 4, j, false));
        const minimum = Math.fround(dmin * sixBits(bytes, block + 4, j, true));
        const shift = j % 2 === 0 ? 0 : 4;
        for (let i = 0; i < 32; i++) {
          let q = (bytes[block + nibbles + 32 * (j >> 1) + i]! >> shift) & 15;
          if (fifth) q |= ((bytes[block + 16 + i]! >> j) & 1) << 4;
          target[out + 32 * j + i] = Math.fround(scale * q) - minimum;
        }
      }
    }
  };
}

/** 256 weights in 16 parts, w = d · scale · (q − 32): low 4 bits in 128 bytes, high 2 bits in 64, int8 scales, d. */
const q6K: Dequantizer = (bytes, target) => {
  for (let block = 0, out = 0; out < target.length; block += 210, out += K) {
    const d = float16(bytes, block + 208);
    for (let part = 0; part < 16; part++) {
      const scale = Math.fround(d * ((bytes[block + 192 + part]! << 24) >> 24));
      for (let i = 16 * part; i < 16 * part + 16; i++) {
        const within = i & 127; // two halves of 128, each with 64 bytes of low and 32 of high bits
        const low = bytes[block + (i >> 7) * 64 + (within & 63)]! >> (within < 64 ? 0 : 4);
        const high = bytes[block + 128 + (i >> 7) * 32 + (within & 31)]! >> (2 * (within >> 5));
        target[out + i] = scale * (((low & 15) | ((high & 3) << 4)) - 32);
      }
    }
  }
};

/** By the type's name; types that are not here cannot be read. */
export const DEQUANTIZERS: Readonly<Record<string, Dequantizer>> = {
  F32: float32,
  F16: halves(float16ToFloat32),
  BF16: halves(bfloat16ToFloat32),
  Q4_0: fourBits(18, 2, 8, false),
  Q4_1: fourBits(20, 4, 0, true),
  Q5_0: fiveBits(22, 6, 16, false),
  Q5_1: fiveBits(24, 8, 0, true),
  Q8_0: q8_0,
  Q4_K: kBlocks(144, false),
  Q5_K: kBlocks(176, true),
  Q6_K: q6K,
};
