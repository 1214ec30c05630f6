/** @file What there is to say of a model without loading it: sizes, files, tokenizer, memory in each form. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "../../base/index.ts";
import {
  type BackboneConfig,
  openTensors,
  PREPARED,
  parametersOf,
  preparedFiles,
  pulledModel,
  readBackboneConfig,
  readPreparedInfo,
  resolveModel,
  sitesOf,
  Tokenizer,
  type WeightForm,
  weightBytes,
} from "../../models/index.ts";

export const FORMS: readonly WeightForm[] = [
  { kind: "float32" },
  { kind: "int8", blockSize: 32 },
  { kind: "int4", blockSize: 32 },
];

export interface ModelInfo {
  readonly model: string;
  readonly path: string;
  readonly family: string;
  readonly parameters: number;
  readonly layers: number;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly heads: number;
  readonly kv_heads: number;
  readonly head_dim: number;
  readonly vocabulary: number;
  readonly tied_embeddings: boolean;
  readonly context: number;
  readonly sites: { readonly count: number; readonly modules: Record<string, readonly [number, number]> };
  /** Stored dtypes with their parameters; `prepared` where the weights are in their run-time form. */
  readonly dtypes: Readonly<Record<string, number>>;
  readonly file_bytes: number;
  readonly tokenizer: { readonly tokens: number; readonly chat_template: boolean } | null;
  /** Bytes of the weights by form, and of one position of the KV cache. */
  readonly memory: Readonly<Record<string, number>>;
  readonly kv_cache_bytes_per_token: number;
  /** Forms that the cache holds. */
  readonly prepared: readonly string[];
  readonly commit?: string;
}

export function modelInfo(model: string): ModelInfo {
  const path = resolveModel(model);
  const config = readBackboneConfig(path);
  const modules = new Map(sitesOf(config).map((site) => [site.module, [site.outFeatures, site.inFeatures] as const]));
  const pulled = existsSync(model) ? undefined : pulledModel(model);
  const parameters = parametersOf(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  return {
    model,
    path,
    family: config.modelType,
    parameters,
    layers: config.numLayers,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    heads: config.numHeads,
    kv_heads: config.numKvHeads,
    head_dim: config.headDim,
    vocabulary: config.vocabSize,
    tied_embeddings: config.tieWordEmbeddings,
    context: config.maxPositions,
    sites: { count: sitesOf(config).length, modules: Object.fromEntries(modules) },
    ...stored(path, parameters),
    tokenizer: tokenizerOf(path, config),
    memory: Object.fromEntries(FORMS.map((form) => [form.kind, weightBytes(config, form)])),
    kv_cache_bytes_per_token: 2 * config.numLayers * config.numKvHeads * config.headDim * 4,
    prepared: [...preparedFiles(path).keys()],
    ...(pulled && { commit: pulled.commit }),
  };
}

function stored(path: string, parameters: number): Pick<ModelInfo, "dtypes" | "file_bytes"> {
  const own = join(path, PREPARED);
  if (existsSync(own)) {
    const { form } = readPreparedInfo(own);
    return { dtypes: { [`prepared ${form.kind}`]: parameters }, file_bytes: statSync(own).size };
  }
  const dtypes: Record<string, number> = {};
  using source = openTensors(path);
  for (const { storedDType, shape } of source.tensors.values()) {
    dtypes[storedDType] = (dtypes[storedDType] ?? 0) + shape.reduce((a, b) => a * b, 1);
  }
  const files = statSync(path).isFile()
    ? [path]
    : readdirSync(path).filter((name) => name.endsWith(".safetensors")).map((name) => join(path, name)); // biome-ignore format: one line
  return { dtypes, file_bytes: files.reduce((sum, file) => sum + statSync(file).size, 0) };
}

function tokenizerOf(path: string, config: BackboneConfig): ModelInfo["tokenizer"] {
  try {
    const tokenizer = Tokenizer.load(path, config);
    return { tokens: tokenizer.size, chat_template: tokenizer.hasChatTemplate };
  } catch (error) {
    if (error instanceof InputError && ["TOKENIZER_MISSING", "FILE_UNREADABLE"].includes(error.code)) return null;
    throw error;
  }
}
