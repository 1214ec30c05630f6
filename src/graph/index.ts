/** @file Door of the room `graph`: build a typed tensor graph, differentiate it, export it as ONNX. */
export { grad } from "./autodiff.ts";
export * from "./errors.ts";
export { exportOnnx } from "./export.ts";
export { Graph, type GraphOutput, Value } from "./graph.ts";
export { crossEntropy, headCrossEntropy } from "./losses.ts";
export { applyItems, routePrompts } from "./ops/adapters.ts";
export type { Operand } from "./ops/common.ts";
export {
  abs,
  add,
  cos,
  div,
  erf,
  exp,
  gelu,
  geluTanh,
  log,
  maximum,
  minimum,
  mul,
  neg,
  pow,
  reciprocal,
  relu,
  sigmoid,
  sign,
  silu,
  sin,
  sqrt,
  square,
  sub,
  tanh,
} from "./ops/elementwise.ts";
export { stopGradient, straightThrough } from "./ops/flow.ts";
export { type OpName, ops } from "./ops/index.ts";
export { full, gather, gatherElements, oneHot, scatterElements, scatterRows, zeros } from "./ops/indexing.ts";
export {
  concat,
  expand,
  expandLike,
  pad,
  reshape,
  slice,
  split,
  squeeze,
  transpose,
  trilu,
  unsqueeze,
} from "./ops/layout.ts";
export { addedTo, fusedMatmul, type GemmOptions, gemm, matmul } from "./ops/linear.ts";
export { gatherNBits, hasLinear, matmulNBits, type NBitsWeight } from "./ops/quantized.ts";
export {
  argmax,
  cumsum,
  logSoftmax,
  max,
  mean,
  type ReduceOptions,
  softmax,
  sum,
  sumTo,
  topK,
} from "./ops/reduce.ts";
export { and, cast, clip, equal, greater, greaterEqual, less, lessEqual, not, or, where } from "./ops/select.ts";
export { dimOf, dimScalar, range, shapeOf } from "./ops/size.ts";
export {
  type GroupQueryAttentionInputs,
  gatedSilu,
  groupQueryAttention,
  hasOwnAttention,
  narrow,
  rmsNorm,
  rotary,
  skipRmsNorm,
  widen,
} from "./ops/transformer.ts";
export type { Recomputation } from "./recompute.ts";
export {
  addDims,
  broadcastShapes,
  type Dim,
  dimsEqual,
  divDims,
  formatShape,
  mulDims,
  type Shape,
  sizeOf,
  subDims,
} from "./shape.ts";
