/** @file Door of the room `models`: backbones, their files, tokenizers and quantisation. */
export * from "./backbone.ts";
export type { BackboneConfig } from "./config.ts";
export { readBackboneConfig } from "./config-file.ts";
export type { DecodeStreamOptions, TokenStream } from "./detokenizer.ts";
export { FAMILIES, type Family } from "./families.ts";
export { float32ToBfloat16, float32ToFloat16 } from "./floats.ts";
export type * from "./forward.ts";
export { moduleNames, type ParameterInfo, type ParameterKind, parametersOf, sitesOf } from "./layout.ts";
export { dequantize, type QuantizedLinear, type QuantizeOptions, quantize } from "./quantize.ts";
export { type Change, type RewriteOptions, rewriteCheckpoint } from "./rewrite.ts";
export { readSafetensors, SafetensorsFile, type StoredTensor, writeSafetensors } from "./safetensors.ts";
export type { TensorEntry } from "./safetensors-header.ts";
export { SHAPES, type ShapeName } from "./shapes.ts";
export { type ChatMessage, type TokenIds, Tokenizer, type TokenizerParts } from "./tokenizer.ts";
