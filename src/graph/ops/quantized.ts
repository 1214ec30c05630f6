/** @file Weights stored in blocks of 4 or 8 bits: the product with one, its gradient, and looking up rows. */
import { OPERATOR_DOMAIN } from "../../runtime/index.ts";
import { producedBy, type Value } from "../graph.ts";
import { int, type OnnxAttributes } from "../lowering.ts";
import { type Dim, formatShape, mulDims, shapesEqual } from "../shape.ts";
import { apply1, needDtype, op, sameDtype } from "./common.ts";
import { elementwiseOps } from "./elementwise.ts";
import { indexingOps } from "./indexing.ts";
import { layoutOps, slice } from "./layout.ts";
import { gemm } from "./linear.ts";

export interface NBits {
  K: number;
  N: number;
  bits: number;
  blockSize: number;
  accuracyLevel: number;
  /** The weight once more, as single levels. Asked for only when a gradient is taken. */
  levels?: () => Value;
}

export const quantizedOps = {
  /** x times a weight [N, K] stored in blocks of 4 or 8 bits. With float32 x and float16 scales it is milora's `Linear`. */
  matmulNBits: op<NBits>("matmulNBits", {
    infer(at) {
      const [x, quantized, scales, zeroPoints] = at.inputs;
      const { K, N, bits, blockSize, accuracyLevel } = at.attributes;
      needDtype(at, x!, "float32", "float16");
      needDtype(at, quantized!, "uint8");
      if (!isLinear(at.inputs)) sameDtype(at, [x!, scales!]);
      else if (!hasLinear(x!, blockSize) || zeroPoints || accuracyLevel !== 4) {
        at.fail(
          "DTYPE_MISMATCH",
          "float16 scales need float16 x here: there is no operator of milora's for this product",
        );
      }
      if (bits !== 4 && bits !== 8) at.fail("BAD_ATTRIBUTE", `bits must be 4 or 8, not ${bits}`);
      if (blockSize < 16 || !Number.isInteger(Math.log2(blockSize))) {
        at.fail("BAD_ATTRIBUTE", `the block size must be a power of two from 16 up, not ${blockSize}`);
      }
      const blocks = Math.ceil(K / blockSize);
      const check = (name: string, value: Value | undefined, ...shapes: Dim[][]): void => {
        if (value && !shapes.some((shape) => shapesEqual(value.shape, shape))) {
          at.fail(
            "SHAPE_MISMATCH",
            `${name} ${formatShape(value.shape)} should be ${shapes.map(formatShape).join(" or ")}`,
          );
        }
      };
      if (x!.shape.at(-1) !== K)
        at.fail("SHAPE_MISMATCH", `x ${formatShape(x!.shape)} does not fit the weight [${N}, ${K}]`);
      check("quantized", quantized, [N, blocks, (blockSize * bits) / 8]);
      check("scales", scales, [N, blocks], [N * blocks]);
      const packed = Math.ceil((blocks * bits) / 8);
      check("zeroPoints", zeroPoints, [N, packed], [N * packed]);
      return { dtype: x!.dtype, shape: [...x!.shape.slice(0, -1), N] };
    },
    lower(to) {
      const { K, N, bits, blockSize, accuracyLevel } = to.attributes;
      const shape = { K: int(K), N: int(N), bits: int(bits), block_size: int(blockSize) };
      if (isLinear(to.node.inputs)) to.emit("Linear", to.ins, shape, to.outs, OPERATOR_DOMAIN);
      else {
        const attributes = { ...shape, accuracy_level: int(accuracyLevel) };
        to.emit("MatMulNBits", to.ins, attributes, to.outs, "com.microsoft");
      }
    },
    // dx = g W, with W dequantised once more: exact, and 30 times faster than looking the rows up.
    gradient: ({ inputs: [x, , scales, zeroPoints], attributes: { levels, K, blockSize }, g }) => {
      if (!levels || zeroPoints || g.shape.length !== 2) return [];
      const dx = (): Value => {
        const whole = producedBy(x!, layoutOps.rowParts)?.inputs[0]; // one dequantised weight for all parts
        const padded = gemm(g, dequantizeBlocks(levels(), scales!, blockSize, whole ?? computedBefore(g)));
        return K % blockSize === 0 ? padded : slice(padded, 1, 0, K);
      };
      return [dx];
    },
  }),
  /**
   * Levels [N, K] times the scales of their blocks, as float32. The third input only says when: not before it is there.
   * A product of weights alone would otherwise be computed when the session is made, and be kept.
   */
  dequantizeBlocks: op<{ blockSize: number }>("dequantizeBlocks", {
    infer(at) {
      const [levels, scales] = at.inputs;
      const { blockSize } = at.attributes;
      needDtype(at, levels!, "uint4", "uint8");
      needDtype(at, scales!, "float32");
      const [N, K] = levels!.shape as readonly [number, number];
      if (levels!.shape.length !== 2 || !shapesEqual([mulDims(...scales!.shape)], [(N * K) / blockSize])) {
        const shapes = `${formatShape(levels!.shape)} and scales ${formatShape(scales!.shape)}`;
        at.fail("SHAPE_MISMATCH", `levels ${shapes} do not fit in blocks of ${blockSize}`);
      }
      return { dtype: "float32", shape: levels!.shape };
    },
    lower(to) {
      const [levels] = to.node.inputs;
      const [N, K] = levels!.shape as readonly [number, number];
      const blocks = K / to.attributes.blockSize;
      const step = (type: string, inputs: readonly string[], attributes: OnnxAttributes = {}): string =>
        to.emit(type, inputs, attributes, [to.temporary()]);
      const size = step("Cast", [step("Shape", [to.in(2)], { start: int(0), end: int(1) })], { to: int(1) });
      const late = step("Add", [to.in(1), step("Mul", [size, to.constant("float32", [], [0])])]);
      // Reshaping the scales first would be done when the session is made, and take the weights' values for that.
      const scales = step("Reshape", [late, to.int64s([N, blocks])]);
      const packed = levels!.dtype === "uint4";
      const middle = packed
        ? new Uint8Array(Math.ceil((N * blocks) / 2)).fill(0x88)
        : new Uint8Array(N * blocks).fill(0x80);
      const zero = to.constant(levels!.dtype, [N, blocks], middle);
      to.emit("DequantizeLinear", [to.in(0), scales, zero], { axis: int(1), block_size: int(to.attributes.blockSize) });
    },
  }),
  /** Rows of an embedding table stored in blocks of 4 or 8 bits (uint8, low bits first). */
  gatherNBits: op<{ bits: number; blockSize: number; columns: number }>("gatherNBits", {
    infer(at) {
      const [quantized, indices, scales] = at.inputs;
      const { bits, blockSize, columns } = at.attributes;
      needDtype(at, quantized!, "uint8");
      needDtype(at, indices!, "int64", "int32");
      needDtype(at, scales!, "float32", "float16");
      if (bits !== 4 && bits !== 8) at.fail("BAD_ATTRIBUTE", `bits must be 4 or 8, not ${bits}`);
      const rows = quantized!.shape[0]!;
      const expected = [
        [rows, (columns * bits) / 8],
        [rows, Math.ceil(columns / blockSize)],
      ] as const;
      if (!shapesEqual(quantized!.shape, expected[0]) || !shapesEqual(scales!.shape, expected[1])) {
        const got = `${formatShape(quantized!.shape)} and ${formatShape(scales!.shape)}`;
        at.fail(
          "SHAPE_MISMATCH",
          `quantized and scales are ${got}, should be ${expected.map(formatShape).join(" and ")}`,
        );
      }
      return { dtype: scales!.dtype, shape: [...indices!.shape, columns] };
    },
    lower(to) {
      const { bits, blockSize } = to.attributes;
      const attributes = { bits: int(bits), block_size: int(blockSize), gather_axis: int(0), quantize_axis: int(1) };
      to.emit("GatherBlockQuantized", to.ins, attributes, to.outs, "com.microsoft");
    },
  }),
};

/**
 * Whether milora's own operator `Linear` can multiply rows x with a weight in blocks of this size, float16 scales and its
 * zero point in the middle; x is rounded to 8 bits.
 */
export function hasLinear(x: Value, blockSize: number): boolean {
  return x.shape.length === 2 && x.dtype === "float32" && [32, 64, 128].includes(blockSize) && x.graph.hasOperators;
}

/** Whether a product's inputs are those of `Linear`. */
export const isLinear = ([x, , scales]: readonly Value[]): boolean =>
  x!.dtype === "float32" && scales!.dtype === "float16";

/** Levels uint4 or uint8 [N, K] with the zero point in the middle, times one of the N · K / blockSize scales each. */
function dequantizeBlocks(levels: Value, scales: Value, blockSize: number, after: Value): Value {
  return apply1(quantizedOps.dequantizeBlocks, [levels, scales, after], { blockSize });
}

/** A large value that is there right before g, also where a product with g is computed without making g itself. */
function computedBefore(g: Value): Value {
  const scaled = producedBy(g, elementwiseOps.mul)?.inputs[0] ?? g;
  return producedBy(scaled, indexingOps.scatterElements)?.inputs[0] ?? scaled;
}

export interface NBitsWeight {
  /** uint8 [N, ceil(K / blockSize), blockSize * bits / 8], low bits first. */
  quantized: Value;
  /** [N, ceil(K / blockSize)], as x; float16 for float32 x where it `hasLinear` and the accuracy level is 4. */
  scales: Value;
  /** uint8 [N, ceil(ceil(K / blockSize) * bits / 8)]; default 2^(bits-1) */
  zeroPoints?: Value;
  /**
   * The bytes of `quantized` as levels, uint4 or uint8 [N, ceil(K / blockSize) * blockSize]. Asked for when the gradient
   * with respect to x is; it exists for matrices x and weights without zero points.
   */
  levels?: () => Value;
  K: number;
  N: number;
  bits: 4 | 8;
  blockSize: number;
  /** 0: exact float32, 4: x rounded to int8 blocks (fastest on CPU). Default 0. */
  accuracyLevel?: 0 | 1 | 2 | 3 | 4;
}

/** x [..., K] times the transposed dequantised weight [N, K]: [..., N]. Differentiable in x where `levels` are given. */
export function matmulNBits(x: Value, weight: NBitsWeight): Value {
  const { quantized, scales, zeroPoints, levels, K, N, bits, blockSize, accuracyLevel = 0 } = weight;
  const inputs = zeroPoints ? [x, quantized, scales, zeroPoints] : [x, quantized, scales];
  const attributes = { K, N, bits, blockSize, accuracyLevel, ...(levels && { levels }) };
  return apply1(quantizedOps.matmulNBits, inputs, attributes);
}

/** Rows of a quantised embedding table: quantized uint8 [rows, columns * bits / 8], scales [rows, columns / blockSize]. */
export function gatherNBits(
  table: { quantized: Value; scales: Value; columns: number; bits: 4 | 8; blockSize: number },
  indices: Value,
): Value {
  const { bits, blockSize, columns } = table;
  return apply1(quantizedOps.gatherNBits, [table.quantized, indices, table.scales], { bits, blockSize, columns });
}
