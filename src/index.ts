/** @file The library's door: what `import … from "milora"` gives. */

export { InputError, MiloraError } from "./base/index.ts";
export {
  type Accuracy,
  accuracyOf,
  chooseExtraction,
  type ExactMatchOptions,
  type ExactMatchResult,
  type Extraction,
  exactMatch,
  extractAnswer,
  isCorrect,
  type LabelledRow,
  loadLabelledRows,
  type PerplexityResult,
  perplexity,
  type ScoredRow,
} from "./evaluation/index.ts";
export * from "./generation/index.ts";
/** The typed tensor graph, for those who write a method of their own. */
export * as graph from "./graph/index.ts";
export {
  Adapter,
  type LoraConfig,
  type Method,
  type MiloraConfig,
  mergeAdapter,
  methodOf,
  methods,
  type ParameterCount,
  type Routing,
} from "./methods/index.ts";
export {
  Backbone,
  type BackboneConfig,
  type ChatMessage,
  type ChatTemplateOptions,
  readBackboneConfig,
  readSafetensors,
  SHAPES,
  type ShapeName,
  type Site,
  type StoredTensor,
  Tokenizer,
  type TokenizerParts,
  writeSafetensors,
} from "./models/index.ts";
export {
  availableDevices,
  configureRuntime,
  type DeviceName,
  RuntimeError,
  runtimeVersion,
  Tensor,
} from "./runtime/index.ts";
export {
  loadRows,
  type Message,
  PromptTemplate,
  type Row,
  renderPrompt,
  renderRow,
  resolveTrainingConfig,
  type Template,
  type TogetherOptions,
  type TrainingConfig,
  type TrainingConfigInput,
  TrainingError,
  type TrainingEvent,
  type TrainingResult,
  type TrainOptions,
  templateOf,
  train,
  trainingConfigSchema,
  trainTogether,
} from "./training/index.ts";
