/** @file Prepares a model: its weights in the form they have at run time, in the cache or as a directory of their own. */
import { copyFileSync, existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { InputError, writeDirectoryAtomic, writeFileAtomic } from "../base/index.ts";
import { Backbone, type BackboneOptions } from "./backbone.ts";
import { knownDigest, preparedPath, rememberDigest } from "./cache.ts";
import { GgufModel } from "./gguf/model.ts";
import { tokenizerFiles } from "./gguf/tokenizer.ts";
import { openPrepared, PREPARED, type PreparedInfo, readPreparedInfo, writePrepared } from "./prepared.ts";
import { resolveModel } from "./pull.ts";
import { LEFT } from "./rewrite.ts";

export interface PrepareOptions extends Pick<BackboneOptions, "weights" | "blockSize"> {
  /** A directory to write, whole and usable as a model; default: the weights go into the cache. */
  readonly output?: string | undefined;
}

export interface Prepared extends PreparedInfo {
  /** The file with the weights. */
  readonly path: string;
  /** It was there already. */
  readonly reused: boolean;
}

/**
 * Makes the run-time form of a model's weights, once; loading then maps it. In the cache it is found by the model's
 * digest, so copies of a model share it. Several processes may prepare one model at once: each file appears whole.
 * @throws InputError what loading throws, OUTPUT_EXISTS, WEIGHTS_PREPARED
 */
export async function prepareModel(name: string, options: PrepareOptions = {}): Promise<Prepared> {
  const model = resolveModel(name);
  const { output, ...form } = options;
  if (output !== undefined && existsSync(output)) {
    throw new InputError("OUTPUT_EXISTS", output, "exists already; remove it or choose another directory");
  }
  if (existsSync(join(model, PREPARED))) {
    throw new InputError("WEIGHTS_PREPARED", model, "is prepared already; give the model it was made of");
  }
  using backbone = await Backbone.load(model, output === undefined ? form : { ...form, cached: false });
  if (output !== undefined) {
    await writeDirectoryAtomic(output, async (directory) => {
      copyDescription(model, directory);
      await writePrepared(join(directory, PREPARED), backbone);
    });
    const path = join(output, PREPARED);
    return { ...readPreparedInfo(path), path, reused: false };
  }
  const path = preparedPath(backbone.digest, backbone.weights);
  const reused = isSound(path, backbone);
  if (!reused) await writePrepared(path, backbone);
  if (knownDigest(model) !== backbone.digest) rememberDigest(model, backbone.digest);
  return { ...readPreparedInfo(path), path, reused };
}

function isSound(path: string, { config }: Backbone): boolean {
  if (!existsSync(path)) return false;
  try {
    for (const tensor of openPrepared(path, config).weights.tensors.values()) tensor.dispose();
    return true;
  } catch {
    rmSync(path, { force: true });
    return false;
  }
}

/** All of a model but its weights: config, tokenizer, chat template. */
function copyDescription(model: string, directory: string): void {
  if (GgufModel.is(model)) {
    using file = GgufModel.open(model);
    const { tokenizerJson, config } = tokenizerFiles(file.metadata, model);
    const files = { "config.json": file.config, "tokenizer.json": tokenizerJson, "tokenizer_config.json": config };
    for (const [name, content] of Object.entries(files)) {
      writeFileAtomic(join(directory, name), `${JSON.stringify(content)}\n`);
    }
    return;
  }
  for (const name of readdirSync(model).filter((file) => !LEFT.test(file))) {
    if (statSync(join(model, name)).isFile()) copyFileSync(join(model, name), join(directory, name));
  }
}
