/** @file Losses of training. */
import { type None, none, type Value } from "./graph.ts";
import { int, type OnnxAttributes } from "./lowering.ts";
import { apply1, needDtype, needFloat, op } from "./ops/common.ts";
import { div, maximum, mul } from "./ops/elementwise.ts";
import { full, scatterElements } from "./ops/indexing.ts";
import { unsqueeze } from "./ops/layout.ts";
import { sum } from "./ops/reduce.ts";
import { formatShape, shapesEqual } from "./shape.ts";

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
};

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
