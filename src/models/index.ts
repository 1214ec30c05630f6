/** @file Door of the room `models`: backbones, their files, tokenizers and quantisation. */
export { cacheWidth, readsHalves } from "./attention.ts";
export * from "./backbone.ts";
export { cacheDirectory, preparedFiles } from "./cache.ts";
export type { BackboneConfig } from "./config.ts";
export { readBackboneConfig } from "./config-file.ts";
export type { DecodeStreamOptions, TokenStream } from "./detokenizer.ts";
export { download, HubStatusError, isWhole } from "./download.ts";
export { FAMILIES, type Family } from "./families.ts";
export type * from "./forward.ts";
export { ggufArchitecture, ggufModule } from "./gguf/names.ts";
export { type GgufTensorToWrite, type GgufValue, writeGguf } from "./gguf/write.ts";
export { type HubFile, type HubListing, hubReason, hubStatus, listHub } from "./hub.ts";
export {
  joinedSites,
  moduleNames,
  modulesHolding,
  type ParameterInfo,
  type ParameterKind,
  parametersOf,
  sitesOf,
} from "./layout.ts";
export { type Prepared, type PrepareOptions, prepareModel } from "./prepare.ts";
export { PREPARED, type PreparedInfo, readPreparedInfo, verifyPrepared, weightBytes } from "./prepared.ts";
export { type PulledModel, type PullOptions, parseModelName, pulledModel, pullModel, resolveModel } from "./pull.ts";
export { dequantize, type QuantizedLinear, type QuantizeOptions, quantize } from "./quantize.ts";
export { type Change, type RewriteOptions, rewriteCheckpoint } from "./rewrite.ts";
export { steadyLength } from "./rope.ts";
export { readSafetensors, SafetensorsFile, type StoredTensor, writeSafetensors } from "./safetensors.ts";
export type { TensorEntry } from "./safetensors-header.ts";
export { SHAPES, type ShapeName } from "./shapes.ts";
export type { ChatMessage, ChatTemplateOptions } from "./tokenizer/chat-template.ts";
export { JinjaTemplate } from "./tokenizer/jinja.ts";
export { type TokenIds, Tokenizer, type TokenizerParts } from "./tokenizer.ts";
