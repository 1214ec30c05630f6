/** @file Door of the room `training`: runs from a config, the step machinery alone, and how rows become tokens. */
export { batchOfStep, Collated, Order, stepsPerEpoch } from "./batches.ts";
export { checkpointPath, listCheckpoints, readCheckpointState } from "./checkpoint.ts";
export {
  configDigest,
  decisiveFields,
  resolveTrainingConfig,
  type TrainingConfig,
  type TrainingConfigInput,
  trainingConfigSchema,
} from "./config.ts";
export { jsonSchemaOf, readConfigFile, unknownSettings } from "./config-file.ts";
export {
  countRows,
  type DataOptions,
  type DataSet,
  type Example,
  examplesDigest,
  loadData,
  type MixedSource,
  type Source,
  splitRows,
  toExample,
} from "./data.ts";
export { TrainingError, type TrainingErrorCode } from "./errors.ts";
export type { Evaluation } from "./evaluate.ts";
export type { TogetherOptions, TrainingEvent, TrainingResult, TrainOptions } from "./events.ts";
export { type FileRecord, readRecords } from "./files.ts";
export { HUB_PREFIX } from "./hub.ts";
export { type JointInput, JointTrainer } from "./joint.ts";
export {
  type EvaluationMetrics,
  readMetrics,
  type StepLosses,
  type StepMetrics,
  type WrittenLine,
  writtenLineSchema,
} from "./metrics.ts";
export { PRESETS, type Preset, type PresetName, presetSettings } from "./presets.ts";
export { alpacaPrompt, outputOf, type RenderedRow, renderPrompt, renderRow } from "./render.ts";
export { type RoutingMetrics, RoutingTally } from "./routing.ts";
export { type Columns, loadRows, type Message, parseRow, type Row, type RowOptions, rowsOfText } from "./rows.ts";
export { bestDirectory, breakRunLock, holdsRun, isTraining, metricsPath, readRunConfig } from "./run-directory.ts";
export { scheduleFactor, warmupSteps } from "./schedule.ts";
export { assign, isSettings, merge, type Settings, settingPath, withoutNulls } from "./settings.ts";
export { filesOf } from "./sources.ts";
export { PromptTemplate, type Template, templateOf } from "./template.ts";
export { writeEvents } from "./tensorboard.ts";
export { nearest, shorten } from "./text.ts";
export { train, trainTogether } from "./train.ts";
export { type StepInput, type StepOutcome, Trainer, type TrainerOptions } from "./trainer.ts";
