/** @file Matrix products. Transposes are attributes of the product, so no weight is ever transposed by a node of its own. */
import { type Inference, producedBy, type Typed, type Value } from "../graph.ts";
import { float, int, onnx } from "../lowering.ts";
import { broadcastShapes, type Dim, formatShape, mulDims, shapesEqual } from "../shape.ts";
import { apply1, needFloat, op, sameDtype } from "./common.ts";
import { elementwiseOps, mul } from "./elementwise.ts";
import { gather, indexingOps } from "./indexing.ts";
import { reshape, squeeze } from "./layout.ts";

export interface Product {
  transA: boolean;
  transB: boolean;
  alpha: number;
}

const transposed = (value: Value, yes: boolean): string => formatShape(value.shape) + (yes ? "ᵀ" : "");

function mismatch(at: Inference<Product>, reason: string): never {
  const { transA, transB } = at.attributes;
  const shapes = `${transposed(at.inputs[0]!, transA)} by ${transposed(at.inputs[1]!, transB)}`;
  return at.fail("SHAPE_MISMATCH", `cannot multiply ${shapes}: ${reason}`);
}

/** Rows and columns of the product of the last two axes. */
function matrixSizes(at: Inference<Product>): { rows: Dim; columns: Dim } {
  const [a, b] = at.inputs;
  const { transA, transB } = at.attributes;
  needFloat(at);
  sameDtype(at, [a!, b!]);
  if (a!.shape.length < 2 || b!.shape.length < 2) mismatch(at, "needs matrices");
  const [m, k] = transA ? [a!.shape.at(-1)!, a!.shape.at(-2)!] : [a!.shape.at(-2)!, a!.shape.at(-1)!];
  const [inner, n] = transB ? [b!.shape.at(-1)!, b!.shape.at(-2)!] : [b!.shape.at(-2)!, b!.shape.at(-1)!];
  if (k !== inner) mismatch(at, `inner sizes ${k} and ${inner} differ`);
  return { rows: m, columns: n };
}

function inferMatmul(at: Inference<Product>): Typed {
  const { rows, columns } = matrixSizes(at);
  const [a, b] = at.inputs;
  const batch = broadcastShapes(a!.shape.slice(0, -2), b!.shape.slice(0, -2));
  if (batch === undefined) return mismatch(at, "batch sizes do not broadcast");
  return { dtype: a!.dtype, shape: [...batch, rows, columns] };
}

export const linearOps = {
  /** Batched product alpha · A' B' of the last two axes (' : transposed if so asked). */
  matmul: op<Product>("matmul", {
    infer: inferMatmul,
    lower(to) {
      const { transA, transB, alpha } = to.attributes;
      if (!transA && !transB && alpha === 1) {
        to.emit("MatMul", to.ins);
      } else if (to.node.inputs[0]!.dtype === "float32" && to.device !== "webgpu") {
        const attributes = { transA: int(transA), transB: int(transB), alpha: float(alpha) };
        to.emit("FusedMatMul", to.ins, attributes, to.outs, "com.microsoft");
      } else {
        // FusedMatMul exists for float32 only, and not for WebGPU.
        const [a, b] = [transA, transB].map((transposed, i) => {
          if (!transposed) return to.in(i);
          const rank = to.node.inputs[i]!.shape.length;
          const perm = Array.from({ length: rank }, (_, axis) => axis);
          perm.push(...perm.splice(-2).reverse());
          return to.emit("Transpose", [to.in(i)], { perm: { ints: perm } }, [to.temporary()]);
        });
        const product = to.emit("MatMul", [a!, b!], {}, [alpha === 1 ? to.out() : to.temporary()]);
        if (alpha !== 1) to.emit("Mul", [product, to.constant(to.node.inputs[0]!.dtype, [], [alpha])]);
      }
    },
    // With P = A' B': dA' = g B'ᵀ and dB' = A'ᵀ g; a transposed operand swaps the two factors.
    gradient: ({ inputs: [a, b], attributes: { transA, transB, alpha }, g }) => [
      () =>
        transA
          ? fusedMatmul(b!, g, { transA: transB, transB: true, alpha })
          : fusedMatmul(g, b!, { transB: !transB, alpha }),
      () => {
        // One matrix for the whole batch: its gradient is one product over all rows, not a sum of products.
        if (b!.shape.length === 2 && a!.shape.length > 2 && !transA) {
          const rows = mulDims(...a!.shape.slice(0, -1));
          const flat = (value: Value): Value => reshape(value, [rows, value.shape.at(-1)!]);
          return transB
            ? gemm(flat(g), flat(a!), { transA: true, alpha })
            : gemm(flat(a!), flat(g), { transA: true, alpha });
        }
        return transB
          ? fusedMatmul(g, a!, { transA: true, transB: transA, alpha })
          : fusedMatmul(a!, g, { transA: !transA, alpha });
      },
    ],
  }),
  /** alpha · A' B' + beta · C on matrices; C broadcasts to the product. */
  gemm: op<Product & { beta: number }>("gemm", {
    infer(at) {
      const { rows, columns } = matrixSizes(at);
      const [a, b, c] = at.inputs;
      const shape = [rows, columns];
      if (a!.shape.length !== 2 || b!.shape.length !== 2) {
        mismatch(at, "gemm takes 2-D matrices, matmul takes batches");
      }
      if (c) {
        sameDtype(at);
        const joint = broadcastShapes(c.shape, shape);
        if (joint === undefined || !shapesEqual(joint, shape)) {
          at.fail(
            "SHAPE_MISMATCH",
            `c ${formatShape(c.shape)} does not broadcast to the product ${formatShape(shape)}`,
          );
        }
      }
      return { dtype: a!.dtype, shape };
    },
    lower: onnx("Gemm", ({ transA, transB, alpha, beta }) => ({
      transA: int(transA),
      transB: int(transB),
      alpha: float(alpha),
      beta: float(beta),
    })),
    gradient: ({ inputs: [a, b], attributes: { transA, transB, alpha, beta }, g }) => [
      () => (transA ? gemm(b!, g, { transA: transB, transB: true, alpha }) : gemm(g, b!, { transB: !transB, alpha })),
      () => (transB ? gemm(g, a!, { transA: true, transB: transA, alpha }) : gemm(a!, g, { transA: !transA, alpha })),
      () => mul(g, beta),
    ],
  }),
};

/** Batched product of the last two axes, leading axes broadcast. Both operands have at least two axes. */
export function matmul(a: Value, b: Value): Value {
  return fusedMatmul(a, b);
}

/** alpha · A' B' over batches, each operand transposed in its last two axes if so asked. */
export function fusedMatmul(a: Value, b: Value, options: Partial<Product> = {}): Value {
  const { transA = false, transB = false, alpha = 1 } = options;
  return apply1(linearOps.matmul, [a, b], { transA, transB, alpha });
}

export interface GemmOptions extends Partial<Product> {
  /** Added to the product; broadcasts to [M, N]. */
  c?: Value;
  beta?: number;
}

/** alpha · A' B' + beta · c on matrices. A torch Linear weight [out, in] is `b` with `transB: true`. */
export function gemm(a: Value, b: Value, options: GemmOptions = {}): Value {
  const { transA = false, transB = false, alpha = 1, beta = 1 } = options;
  const c = options.c && !takesAsC(options.c) ? reshape(options.c, [1, 1]) : options.c;
  return (
    (c || transA ? undefined : simplerProduct(a, b, { transB, alpha })) ??
    apply1(linearOps.gemm, c ? [a, b, c] : [a, b], { transA, transB, alpha, beta })
  );
}

/** Whether a product can begin with a value: a number in place of a matrix ends the process on WebGPU. */
export function takesAsC({ graph, shape }: Value): boolean {
  return graph.device !== "webgpu" || shape.length > 0;
}

/**
 * The product that `value` adds to `base`; undefined where it is no product that begins with `base` as its c. Whoever
 * puts several such values together need not put the bases together too.
 */
export function addedTo(base: Value, value: Value): Value | undefined {
  const node = producedBy(value, linearOps.gemm);
  const [a, b, c] = node?.inputs ?? [];
  if (!node || c !== base || node.attributes.beta !== 1 || !shapesEqual(base.shape, value.shape)) return undefined;
  return gemm(a!, b!, node.attributes);
}

/**
 * Two identities of a product x B' that spare passes over x when x is the gradient of the logits, the largest matrix of
 * training; its rows are (p - onehot) g.
 */
function simplerProduct(x: Value, b: Value, options: { transB: boolean; alpha: number }): Value | undefined {
  // (w · column) B' = (w B') · column, where the product is narrower than w.
  const [wide, column] = producedBy(x, elementwiseOps.mul)?.inputs ?? [];
  const narrower = Number(b.shape[options.transB ? 0 : 1]) < Number(x.shape[1]);
  if (
    wide &&
    column &&
    narrower &&
    shapesEqual(wide.shape, x.shape) &&
    column.shape.length === 2 &&
    column.shape[1] === 1
  ) {
    return mul(gemm(wide, b, options), column);
  }
  // One entry u added to each row, at column i: w B + u · (row i of B).
  const added = producedBy(x, indexingOps.scatterElements);
  const [base, indices, updates] = added?.inputs ?? [];
  if (base && indices && updates && !options.transB && added?.attributes.reduction === "add") {
    if (added.attributes.axis === 1 && indices.shape[1] === 1 && indices.shape[0] === base.shape[0]) {
      return gemm(base, b, { ...options, c: mul(gather(b, squeeze(indices, [1])), updates), beta: options.alpha });
    }
  }
  return undefined;
}
