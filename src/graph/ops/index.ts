/** @file The table of all ops, and their public functions. */
import { lossOps } from "../losses.ts";
import { adapterOps } from "./adapters.ts";
import { elementwiseOps } from "./elementwise.ts";
import { flowOps } from "./flow.ts";
import { indexingOps } from "./indexing.ts";
import { layoutOps } from "./layout.ts";
import { linearOps } from "./linear.ts";
import { quantizedOps } from "./quantized.ts";
import { reduceOps } from "./reduce.ts";
import { selectOps } from "./select.ts";
import { sizeOps } from "./size.ts";
import { transformerOps } from "./transformer.ts";

/**
 * Every op of the project: inference, lowering and gradient in one entry each.
 *
 * A new op is an entry in the table of its file, its public function beside it and that function's name in the door.
 * Tests then ask for a forward case (testing/cases.ts) and, with a gradient rule, a random problem (testing/problems.ts).
 */
export const ops = {
  ...elementwiseOps,
  ...selectOps,
  ...reduceOps,
  ...linearOps,
  ...layoutOps,
  ...indexingOps,
  ...sizeOps,
  ...quantizedOps,
  ...adapterOps,
  ...transformerOps,
  ...flowOps,
  ...lossOps,
};

export type OpName = keyof typeof ops;
