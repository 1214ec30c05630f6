/** @file Quantised blocks of GGUF files moved as they are into the layout of `MatMulNBits`: same levels, same scales. */
import { InputError } from "../../base/index.ts";
import type { QuantizedLinear } from "../quantize.ts";

/** Blocks of 32 weights with one float16 scale and the levels after it: w = scale · (level − zero point). */
interface Blocks {
  readonly bytes: number;
  /** Levels of the block at `at`, counted from the zero point, into `levels` [32]. */
  unpack(bytes: Uint8Array, at: number, levels: Int8Array): void;
  /** The fewest bits that hold every level, around the zero point of `MatMulNBits`. */
  readonly bits: 4 | 8;
}

const BLOCKS: Readonly<Record<string, Blocks>> = {
  Q4_0: {
    bytes: 18,
    bits: 4,
    unpack(bytes, at, levels) {
      for (let i = 0; i < 16; i++) {
        const byte = bytes[at + 2 + i]!;
        levels[i] = (byte & 15) - 8;
        levels[i + 16] = (byte >> 4) - 8;
      }
    },
  },
  Q5_0: {
    bytes: 22,
    bits: 8,
    unpack(bytes, at, levels) {
      for (let i = 0; i < 32; i++) {
        const high = (bytes[at + 2 + (i >> 3)]! >> (i & 7)) & 1;
        const nibble = (bytes[at + 6 + (i & 15)]! >> (i < 16 ? 0 : 4)) & 15;
        levels[i] = (nibble | (high << 4)) - 16;
      }
    },
  },
  Q8_0: {
    bytes: 34,
    bits: 8,
    unpack(bytes, at, levels) {
      for (let i = 0; i < 32; i++) levels[i] = (bytes[at + 2 + i]! << 24) >> 24;
    },
  },
};

/** Moves blocks from `bytes` into the target, from its block `first` on. Throws InputError `WEIGHT_NOT_FINITE`. */
type Move = (bytes: Uint8Array, first: number) => void;

/** How to move blocks of a type without any loss; undefined where the target has no such blocks. */
export function repack(type: string, target: QuantizedLinear, name: string): Move | undefined {
  const blocks = Object.hasOwn(BLOCKS, type) ? BLOCKS[type] : undefined;
  const { bits, blockSize, quantized, scales } = target;
  if (blocks === undefined || blockSize !== 32 || bits < blocks.bits) return undefined;
  const levels = new Int8Array(32);
  return (bytes, first) => {
    for (let at = 0, block = first; at < bytes.length; at += blocks.bytes, block++) {
      const scale = bytes[at]! | (bytes[at + 1]! << 8);
      scales[block] = scale;
      if ((scale & 0x7c00) === 0x7c00) {
        throw new InputError("WEIGHT_NOT_FINITE", name, "holds a number that is not finite");
      }
      if (bits === 8) {
        blocks.unpack(bytes, at, levels);
        for (let i = 0; i < 32; i++) quantized[32 * block + i] = levels[i]! + 128;
      } else {
        // Q4_0: the same nibbles in another order, neighbours in one byte.
        for (let i = 0; i < 8; i++) {
          const even = bytes[at + 2 + 2 * i]!;
          const odd = bytes[at + 3 + 2 * i]!;
          quantized[16 * block + i] = (even & 15) | ((odd & 15) << 4);
          quantized[16 * block + 8 + i] = (even >> 4) | (odd & 0xf0);
        }
      }
    }
  };
}
