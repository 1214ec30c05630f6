/** @file All of a model but its weights: config, tokenizer, chat template, copied or written from a GGUF file's metadata. */
import { copyFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { readText, writeFileAtomic } from "../base/index.ts";
import { GgufModel } from "./gguf/model.ts";
import { hasTokenizer, tokenizerFiles } from "./gguf/tokenizer.ts";

/** Weights in any format, which are written anew or left behind, and the model's own description. */
const LEFT = /\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack)$|\.index\.json$|^README|^\./;

/**
 * The text of a config.json, told of another dtype: `dtype` in transformers 5, `torch_dtype` in 4. Nothing else of it
 * changes: transformers is strict about 5.0, which is not 5, and JavaScript would not keep it.
 */
function withDtype(text: string, dtype: string): string {
  const field = /("(?:torch_)?dtype"\s*:\s*)(?:"[^"]*"|null)/g;
  if (field.test(text)) return text.replace(field, `$1"${dtype}"`);
  return text.replace("{", `{\n  "dtype": "${dtype}",`);
}

/** Fields that transformers wants written as floats. */
const FLOAT_FIELDS = /("(?:\w+_softcapping|rope_theta|factor|attention_factor|rms_norm_eps)": -?\d+)(?=[,\s}])/g;

/**
 * @param model a directory or a GGUF file
 * @param to a directory that exists
 * @param dtype of the weights that are written, where it is not what the model says of itself
 */
export function copyDescription(model: string, to: string, dtype?: string): void {
  const write = (name: string, content: unknown) =>
    writeFileAtomic(join(to, name), `${JSON.stringify(content, null, name === "tokenizer.json" ? 0 : 2)}\n`);
  if (GgufModel.is(model)) {
    using file = GgufModel.open(model);
    const config = JSON.stringify(file.config, null, 2).replace(FLOAT_FIELDS, "$1.0");
    writeFileAtomic(join(to, "config.json"), `${dtype === undefined ? config : withDtype(config, dtype)}\n`);
    if (!hasTokenizer(file.metadata)) return;
    const tokenizer = tokenizerFiles(file.metadata, model, true);
    write("tokenizer.json", tokenizer.tokenizerJson);
    write("tokenizer_config.json", { tokenizer_class: "PreTrainedTokenizerFast", ...tokenizer.config });
    return;
  }
  for (const name of readdirSync(model).filter((file) => !LEFT.test(file))) {
    const from = join(model, name);
    if (name === "config.json" && dtype !== undefined) {
      writeFileAtomic(join(to, name), withDtype(readText(from), dtype));
    } else if (statSync(from).isFile()) copyFileSync(from, join(to, name));
  }
}
