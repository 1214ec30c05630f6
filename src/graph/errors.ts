/** @file Errors of building, differentiating and exporting a graph. They blame the code that builds, never the user's input. */
import { MiloraError } from "../base/index.ts";

export type GraphErrorCode =
  /** Shapes that do not fit the op; the message holds both shapes, the op and the site. */
  | "SHAPE_MISMATCH"
  /** Element types that do not fit the op. */
  | "DTYPE_MISMATCH"
  /** A value that needs a gradient went through an op without a gradient rule; the message holds op and site. */
  | "NO_GRADIENT"
  /** Two inputs, parameters or outputs of one name. */
  | "DUPLICATE_NAME"
  /** An attribute out of its range: an axis, a permutation, a bit width. */
  | "BAD_ATTRIBUTE"
  /** A symbolic size is needed at run time, but no graph input has it as a dimension. */
  | "UNKNOWN_SYMBOL"
  /** Values of two graphs in one op. */
  | "DIFFERENT_GRAPHS"
  /** An output declared to replace an input whose buffer another node could still read afterwards. */
  | "UNSAFE_IN_PLACE";

export class GraphError extends MiloraError {
  constructor(code: GraphErrorCode, message: string) {
    super(code, message, { exitCode: 1 });
  }
}
