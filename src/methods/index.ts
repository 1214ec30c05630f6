/** @file Door of the room `methods`: the methods of the paper, and adapters. */
export * from "./adapter.ts";
export { type BitfitConfig, bitfit } from "./bitfit/index.ts";
export * from "./build.ts";
export {
  CURVE_RANGE,
  gelu,
  type LearnedActivation,
  largestDeviation,
  learnedActivations,
  readLearnedActivations,
} from "./curves.ts";
export { dora } from "./dora/index.ts";
export { type ExportGgufOptions, exportGguf } from "./export-gguf.ts";
export { exportPeft } from "./export-peft.ts";
export { type FullConfig, full } from "./full/index.ts";
export { type IaptConfig, iapt } from "./iapt/index.ts";
export { type LearnedAdapterConfig, learnedAdapter } from "./learned-adapter/index.ts";
export { type LoraConfig, lora } from "./lora/index.ts";
export { mergeAdapter } from "./merge.ts";
export type {
  Attention,
  AttentionContext,
  BuildContext,
  ExportedAdapter,
  Init,
  LoweredModule,
  LoweredRouter,
  LowRankChange,
  MergeContext,
  Method,
  MethodGraph,
  ParameterCount,
  ParameterSpec,
  Phase,
  PlannedRun,
  Route,
  Routing,
  RunProgress,
  Successor,
  TrainingContext,
  TrainingState,
} from "./method.ts";
export { type MiloraConfig, milora } from "./milora/index.ts";
export { type MoeloraConfig, moelora } from "./moelora/index.ts";
export { type ParallelAdapterConfig, parallelAdapter } from "./parallel-adapter/index.ts";
export { geluDenominator, geluNumerator } from "./rational.ts";
export { methodOf, methodOfConfig, methods } from "./registry.ts";
export { type SspConfig, ssp } from "./ssp/index.ts";
export { type MethodRow, PAPER_SHAPE, parameterTable } from "./table.ts";
