/** @file Weights of modules that read the same rows, put together so that decoding multiplies once for all of them. */
import type { Tensor } from "../runtime/index.ts";
import { quantizedNames } from "./forward.ts";

/** Linear weights [out, in] that become one, row after row, e.g. q, k and v. */
export interface FusedWeight {
  readonly name: string;
  readonly parts: readonly string[];
}

/** Shows the parts of quantised weights that are put together as views, so that nothing is held twice. */
export function splitWeights(
  tensors: Map<string, Tensor>,
  fused: readonly FusedWeight[],
  kind: "int4" | "int8",
  rowsOf: (weight: string) => number,
): void {
  for (const { name, parts } of fused) {
    const rows = parts.reduce((total, part) => total + rowsOf(part), 0);
    for (const which of ["quantized", "scales"] as const) {
      const whole = tensors.get(quantizedNames(name, kind)[which])!;
      const perRow = whole.size / rows;
      let row = 0;
      for (const part of parts) {
        const own = rowsOf(part);
        // Scales have one dimension, with so many to a row.
        const shape = which === "scales" ? [own * perRow] : [own, ...whole.shape.slice(1)];
        tensors.set(quantizedNames(part, kind)[which], whole.view(row * perRow, shape));
        row += own;
      }
    }
  }
}
