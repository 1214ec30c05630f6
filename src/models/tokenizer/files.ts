/** @file The files of a tokenizer in a model directory, in each form that checkpoints have had. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson, readText, reasonOf } from "../../base/index.ts";
import { readSentencePiece, sentencePieceJson } from "./sentencepiece.ts";

export interface TokenizerFiles {
  readonly tokenizerJson: unknown;
  readonly config: Readonly<Record<string, unknown>>;
  readonly template?: string;
  /** The file that errors name. */
  readonly where: string;
}

const object = z.looseObject({});
const addedSchema = z.record(z.string(), z.number().int().min(0));

/** tokenizer_config.json, and the files that older versions of transformers wrote beside it. */
function configOf(directory: string): Record<string, unknown> {
  const read = <S extends z.ZodType>(name: string, schema: S): z.infer<S> | undefined => {
    const path = join(directory, name);
    return existsSync(path) ? readJson(path, schema) : undefined;
  };
  const config: Record<string, unknown> = {
    ...read("special_tokens_map.json", object),
    ...read("tokenizer_config.json", object),
  };
  const added = Object.entries(read("added_tokens.json", addedSchema) ?? {});
  if (added.length && !config.added_tokens_decoder) {
    const plain = { single_word: false, lstrip: false, rstrip: false, special: false };
    config.added_tokens_decoder = Object.fromEntries(added.map(([content, id]) => [id, { ...plain, content }]));
  }
  return { ...config, ...read("chat_template.json", object) };
}

const QWEN2 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** vocab.json and merges.txt: a byte-level BPE; how it cuts a text depends on its class. */
function mergesJson(directory: string, config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const merges = join(directory, "merges.txt");
  const name = String(config.tokenizer_class ?? "GPT2Tokenizer").replace(/Fast$/, "");
  const byteLevel = { type: "ByteLevel", add_prefix_space: config.add_prefix_space === true, use_regex: true };
  const split = { type: "Split", pattern: { Regex: QWEN2 }, behavior: "Isolated", invert: false };
  const qwen2 = { type: "Sequence", pretokenizers: [split, { ...byteLevel, use_regex: false }] };
  if (name !== "GPT2Tokenizer" && name !== "Qwen2Tokenizer") {
    const problem = `vocab.json and merges.txt of a ${name} are not supported; save it with transformers, which writes tokenizer.json`;
    throw new InputError("TOKENIZER_UNSUPPORTED", directory, problem);
  }
  const lines = readText(merges).split(/\r?\n/);
  return {
    model: {
      type: "BPE",
      vocab: readJson(join(directory, "vocab.json"), object),
      merges: lines.filter((line, at) => line !== "" && !(at === 0 && line.startsWith("#version"))),
    },
    normalizer: name === "Qwen2Tokenizer" ? { type: "NFC" } : null,
    pre_tokenizer: name === "Qwen2Tokenizer" ? qwen2 : byteLevel,
    decoder: byteLevel,
  };
}

/** The content of `tokenizer.json`; without one, what `tokenizer.model` or `vocab.json` and `merges.txt` say. */
export function readTokenizerFiles(directory: string): TokenizerFiles {
  const path = (name: string): string => join(directory, name);
  const config = configOf(directory);
  const rest = existsSync(path("chat_template.jinja")) ? { template: readText(path("chat_template.jinja")) } : {};
  const json = path("tokenizer.json");
  if (existsSync(json)) return { tokenizerJson: readJson(json, z.unknown()), config, ...rest, where: json };
  const model = path("tokenizer.model");
  if (existsSync(model)) {
    const { vocabulary, special } = readSentencePiece(readBytes(model), model);
    // LLaMA's and Gemma's own tokenizers put BOS in front.
    const defaults = { ...special, add_bos_token: special.bos_token !== undefined };
    const tokenizerJson = sentencePieceJson({ ...vocabulary, prefixAfterSpecial: config.legacy === true });
    return { tokenizerJson, config: { ...defaults, ...config }, ...rest, where: model };
  }
  if (existsSync(path("vocab.json")) && existsSync(path("merges.txt"))) {
    return { tokenizerJson: mergesJson(directory, config), config, ...rest, where: path("vocab.json") };
  }
  const problem = "no such file, nor tokenizer.model, nor vocab.json with merges.txt; copy the model's tokenizer here";
  throw new InputError("FILE_UNREADABLE", json, problem);
}

/** Whether a model directory comes with a tokenizer. */
export function hasTokenizerFiles(directory: string): boolean {
  const has = (name: string): boolean => existsSync(join(directory, name));
  return has("tokenizer.json") || has("tokenizer.model") || (has("vocab.json") && has("merges.txt"));
}

function readBytes(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new InputError("FILE_UNREADABLE", path, reasonOf(error), { cause: error });
  }
}
