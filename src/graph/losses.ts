/** @file Losses of training. */
import { grad } from "./autodiff.ts";
import { type None, none, type Value } from "./graph.ts";
import { int, type OnnxAttributes } from "./lowering.ts";
import { apply1, needDtype, needFloat, op } from "./ops/common.ts";
import { div, maximum, mul } from "./ops/elementwise.ts";
import { waitFor, zeroAfter } from "./ops/flow.ts";
import { full, scatterElements } from "./ops/indexing.ts";
import { concat, partSizes, rowParts, unsqueeze } from "./ops/layout.ts";
import { sum } from "./ops/reduce.ts";
import { formatShape, shapesEqual } from "./shape.ts";

/** Parts of the logits; enough that they are small beside a layer's activations. */
const PARTS = 16;
/** Rows of logits that are worth a pass over the head's weights. */
const LEAST_ROWS = 256;

export const lossOps = {
  /**
   * Negative log-likelihood of each row of logits x. Outputs: nll [S] and p = softmax(x) [S, V].
   *
   * p is the only pass over [S, V] that is kept: with the largest entries x* and p* of a row, log Σ e^x = x* - log p*,
   * which is stable because p* ≥ 1/V. The gradient is (p - onehot) g.
   */
  rowCrossEntropy: op<None>("rowCrossEntropy", {
    infer(at) {
      const [logits, labels] = at.inputs;
      needFloat(at);
      needDtype(at, labels!, "int64");
      if (logits!.shape.length !== 2 || !shapesEqual(labels!.shape, logits!.shape.slice(0, 1))) {
        const shapes = `${formatShape(logits!.shape)} and labels ${formatShape(labels!.shape)}`;
        at.fail("SHAPE_MISMATCH", `logits ${shapes} should be [S, V] and [S]`);
      }
      return [{ dtype: logits!.dtype, shape: labels!.shape }, logits!];
    },
    lower(to) {
      const step = (type: string, inputs: string[], attributes: OnnxAttributes = {}): string =>
        to.emit(type, inputs, attributes, [to.temporary()]);
      const last = to.int64s([1]);
      const p = to.emit("Softmax", [to.in(0)], { axis: int(1) }, [to.out(1)]);
      const best = step("ReduceMax", [to.in(0), last]); // [S, 1]
      const sum = step("Sub", [best, step("Log", [step("ReduceMax", [p, last])])]);
      const chosen = step("GatherElements", [to.in(0), step("Unsqueeze", [to.in(1), last])], { axis: int(1) });
      to.emit("Squeeze", [step("Sub", [sum, chosen]), last], {}, [to.out()]);
    },
    gradient: ({ inputs: [, labels], outputs: [, p], g }) => [
      () => {
        const column = unsqueeze(labels!, [1]); // [S, 1]
        const minus = full(g.graph, column.shape, -1, g.dtype, column);
        return mul(scatterElements(p!, column, minus, 1, "add"), unsqueeze(g, [1]));
      },
      null,
    ],
  }),
  /** y [S] itself; y[i] depends on row i of x only, and slopes [S, d] are the derivatives. */
  withSlopes: op<None>("withSlopes", {
    infer: ({ inputs: [y] }) => y!,
    lower: () => {},
    gradient: ({ inputs: [, slopes], g }) => [null, null, () => mul(slopes!, unsqueeze(g, [1]))],
    alias: 0,
  }),
};

/**
 * Negative log-likelihood of each row, [S], where the head does not learn: in parts, so that no more than a part's logits
 * are ever there. The gradient with respect to the rows is that of each row times what arrives for it; it is made right
 * with the loss, since the logits would have to be computed once more otherwise (Hsu et al. 2024).
 *
 * @param hidden [S, d]
 * @param logits the head: [R, d] to [R, V], each row by itself; gradients reach `hidden` only
 * @param labels int64 [S], each in 0 … V - 1
 * @param options.differentiable whether a gradient will be taken
 * @param options.parts how many, at most; `options.least` rows in each of them but the last
 */
export function headCrossEntropy(
  hidden: Value,
  logits: (rows: Value) => Value,
  labels: Value,
  {
    differentiable,
    // A part without rows, of which a small batch has some, cannot be computed on WebGPU.
    parts = hidden.graph.device === "webgpu" ? 1 : PARTS,
    least = LEAST_ROWS,
  }: { differentiable: boolean; parts?: number; least?: number },
): Value {
  const sizes = partSizes(hidden, parts, least);
  const cut = (x: Value): readonly Value[] => (parts === 1 ? [x] : rowParts(x, sizes));
  const ownLabels = cut(labels);
  const done = cut(hidden).map((rows, i) => {
    const nll = apply1(lossOps.rowCrossEntropy, [logits(rows), ownLabels[i]!], none);
    if (!differentiable) return { nll, slope: [] };
    const slope = grad(sum(nll), [rows]); // [R, d]
    return { nll: waitFor(nll, zeroAfter(slope[0]!)), slope }; // so that the part is done before the next begins
  });
  const nll = concat(
    done.map((part) => part.nll),
    0,
  );
  if (!differentiable) return nll;
  const slopes = concat(
    done.flatMap(({ slope }) => slope),
    0,
  );
  return apply1(lossOps.withSlopes, [nll, slopes, hidden], none);
}

/**
 * Weighted cross entropy of a batch of tokens: Σ w · nll / Σ w.
 *
 * @param logits [S, V], floating point
 * @param labels int64 [S], each in 0 … V - 1, also where the weight is 0
 * @param weights floating point [S]; 0 masks a row. Without any weight the loss is 0.
 * @returns `loss` scalar, `sum` = Σ w · nll and `count` = Σ w, so that micro-batches can be weighed; `rows` = w · nll, [S]
 */
export function crossEntropy(
  logits: Value,
  labels: Value,
  weights: Value,
): { loss: Value; sum: Value; count: Value; rows: Value } {
  const rows = mul(apply1(lossOps.rowCrossEntropy, [logits, labels], none), weights);
  const total = sum(rows);
  const count = sum(weights);
  return { loss: div(total, maximum(count, 1e-12)), sum: total, count, rows };
}
