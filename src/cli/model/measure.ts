/** @file What a form costs in quality: perplexity of a text in float32 and in every quantised form. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { readText } from "../../base/index.ts";
import { textPerplexity } from "../../evaluation/index.ts";
import { Engine } from "../../generation/index.ts";
import { Backbone, type BackboneOptions } from "../../models/index.ts";

export interface Measured {
  readonly weights: string;
  readonly perplexity: number;
  /** Of float32's. */
  readonly ratio: number;
  readonly tokens: number;
  readonly megabytes: number;
}

/** Passages of the bundled data sets; the same place from src/cli/model and dist/cli/model. */
const BUNDLED = fileURLToPath(new URL("../../../assets/data/passages.txt", import.meta.url));

/** Measures one form after the other, so that one copy of the model is in memory at a time. */
export async function measure(
  forms: readonly { readonly label: string; readonly model: string; readonly options?: BackboneOptions }[],
  text: string | undefined,
  onForm: (label: string) => void,
): Promise<Measured[]> {
  const content = text === undefined ? readFileSync(BUNDLED, "utf8") : readText(text);
  const results: Measured[] = [];
  for (const { label, model, options } of forms) {
    onForm(label);
    using backbone = await Backbone.load(model, options);
    using engine = Engine.create(backbone);
    const { perplexity, tokens } = await textPerplexity(engine, backbone.tokenizer, content);
    const ratio = perplexity / (results[0]?.perplexity ?? perplexity);
    results.push({ weights: label, perplexity, ratio, tokens, megabytes: backbone.byteLength / 2 ** 20 });
  }
  return results;
}
