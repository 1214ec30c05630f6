/** @file Losses of training. */
import { type None, none, type Value } from "./graph.ts";
import { int } from "./lowering.ts";
import { apply1, needDtype, needFloat, op } from "./ops/common.ts";
import { div, exp, maximum, mul, neg } from "./ops/elementwise.ts";
import { scatterElements } from "./ops/indexing.ts";
import { unsqueeze } from "./ops/layout.ts";
import { sum } from "./ops/reduce.ts";
import { formatShape, shapesEqual } from "./shape.ts";

export const lossOps = {
  /**
   * Negative log-likelihood of each row. Outputs: nll [S] and the log-probabilities [S, V] for the gradient
   * (e^logp - onehot) g, built in one buffer of the size of the logits.
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
      const last = to.int64s([1]);
      const logp = to.emit("LogSoftmax", [to.in(0)], { axis: int(1) }, [to.out(1)]);
      const index = to.emit("Unsqueeze", [to.in(1), last], {}, [to.temporary()]);
      const chosen = to.emit("GatherElements", [logp, index], { axis: int(1) }, [to.temporary()]);
      const negative = to.emit("Neg", [chosen], {}, [to.temporary()]);
      to.emit("Squeeze", [negative, last], {}, [to.out()]);
    },
    gradient: ({ inputs: [, labels], outputs: [, logp], g }) => [
      () => {
        const column = unsqueeze(g, [1]); // [S, 1]
        return scatterElements(mul(exp(logp!), column), unsqueeze(labels!, [1]), neg(column), 1, "add");
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
 * @returns `loss` scalar, `sum` = Σ w · nll and `count` = Σ w, so that micro-batches can be weighed
 */
export function crossEntropy(logits: Value, labels: Value, weights: Value): { loss: Value; sum: Value; count: Value } {
  const rows = apply1(lossOps.rowCrossEntropy, [logits, labels], none);
  const total = sum(mul(rows, weights));
  const count = sum(weights);
  return { loss: div(total, maximum(count, 1e-12)), sum: total, count };
}
