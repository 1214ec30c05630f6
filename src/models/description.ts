/** @file All of a model but its weights: config, tokenizer, chat template, copied or written from a GGUF file's metadata. */
import { copyFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { readJson, writeFileAtomic } from "../base/index.ts";
import { GgufModel } from "./gguf/model.ts";
import { hasTokenizer, tokenizerFiles } from "./gguf/tokenizer.ts";

/** Weights in any format, which are written anew or left behind, and the model's own description. */
const LEFT = /\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack)$|\.index\.json$|^README|^\./;

/** config.json, told of another dtype: `dtype` in transformers 5, `torch_dtype` in 4. */
function withDtype(config: Record<string, unknown>, dtype: string | undefined): Record<string, unknown> {
  if (dtype === undefined) return config;
  const keys = ["dtype", "torch_dtype"].filter((key) => key in config);
  return { ...config, ...Object.fromEntries((keys.length > 0 ? keys : ["dtype"]).map((key) => [key, dtype])) };
}

/**
 * @param model a directory or a GGUF file
 * @param to a directory that exists
 * @param dtype of the weights that are written, where it is not what the model says of itself
 */
export function copyDescription(model: string, to: string, dtype?: string): void {
  const write = (name: string, content: unknown, indent?: number) =>
    writeFileAtomic(join(to, name), `${JSON.stringify(content, null, indent)}\n`);
  if (GgufModel.is(model)) {
    using file = GgufModel.open(model);
    write("config.json", withDtype(file.config, dtype), 2);
    if (!hasTokenizer(file.metadata)) return;
    const { tokenizerJson, config } = tokenizerFiles(file.metadata, model);
    write("tokenizer.json", tokenizerJson);
    write("tokenizer_config.json", { tokenizer_class: "PreTrainedTokenizerFast", ...config }, 2);
    return;
  }
  for (const name of readdirSync(model).filter((file) => !LEFT.test(file))) {
    const from = join(model, name);
    if (name === "config.json" && dtype !== undefined)
      write(name, withDtype(readJson(from, z.looseObject({})), dtype), 2);
    else if (statSync(from).isFile()) copyFileSync(from, join(to, name));
  }
}
