/** @file The weights of a model directory, one safetensors file or several with an index, seen as one set of tensors. */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { z } from "zod";
import { InputError, readJson } from "../base/index.ts";
import { type ByteObserver, SafetensorsFile } from "./safetensors.ts";
import type { TensorEntry } from "./safetensors-header.ts";
import type { SourceTensor, TensorSource } from "./tensor-source.ts";

const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

export const SINGLE = "model.safetensors";
export const INDEX = "model.safetensors.index.json";

/** Files of weights that are pickle, or may be. */
export const PICKLE = /\.(bin|pth?|ckpt)$/;
/** What to do about them. */
export const CONVERT =
  "convert it with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)";

const FLOATS = ["F32", "F16", "BF16", "F64"];

export interface CheckpointTensor extends SourceTensor {
  readonly file: SafetensorsFile;
  readonly entry: TensorEntry;
}

function held(file: SafetensorsFile, entry: TensorEntry): CheckpointTensor {
  return { file, entry, shape: entry.shape, storedDType: entry.storedDType };
}

/** All tensors of a model directory, by name. */
export class Checkpoint implements TensorSource {
  /** The directory. */
  readonly path: string;
  readonly readable = FLOATS;
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly #files: readonly SafetensorsFile[];

  private constructor(directory: string, files: SafetensorsFile[], tensors: Map<string, CheckpointTensor>) {
    this.path = directory;
    this.#files = files;
    this.tensors = tensors;
  }

  /**
   * Opens every file of the checkpoint and checks the headers.
   * @throws InputError `MODEL_NOT_FOUND`, `CHECKPOINT_INVALID`, or what `SafetensorsFile.open` throws
   */
  static open(directory: string): Checkpoint {
    const files: SafetensorsFile[] = [];
    try {
      const single = join(directory, SINGLE);
      if (existsSync(single)) {
        const file = SafetensorsFile.open(single);
        files.push(file);
        const tensors = new Map([...file.entries].map(([name, entry]) => [name, held(file, entry)]));
        return new Checkpoint(directory, files, tensors);
      }
      const indexPath = join(directory, INDEX);
      if (!existsSync(indexPath)) {
        const pickle = existsSync(directory) && readdirSync(directory).find((name) => PICKLE.test(name));
        const problem = pickle
          ? `has its weights as pickle (${pickle}), which can run any code and is not read; ${CONVERT}`
          : `has neither ${SINGLE} nor ${INDEX}`;
        throw new InputError("MODEL_NOT_FOUND", directory, problem);
      }
      const weightMap = readJson(indexPath, indexSchema).weight_map;
      const names = [...new Set(Object.values(weightMap))].sort();
      // The index must not lead out of the directory.
      const outside = names.filter(
        (name) => name !== basename(name) || name.includes("\\") || !name.endsWith(".safetensors"),
      );
      if (outside.length > 0) {
        const problems = outside.map(
          (name) => `weight_map names ${JSON.stringify(name)}, not a file of this directory`,
        );
        throw new InputError("CHECKPOINT_INVALID", indexPath, problems);
      }
      const problems: string[] = [];
      const tensors = new Map<string, CheckpointTensor>();
      for (const name of names) {
        const path = join(directory, name);
        if (!existsSync(path)) {
          problems.push(`the shard ${name} is missing`);
          continue;
        }
        const file = SafetensorsFile.open(path);
        files.push(file);
        for (const [tensor, entry] of file.entries) {
          if (tensors.has(tensor)) problems.push(`${tensor} is in more than one shard`);
          tensors.set(tensor, held(file, entry));
        }
      }
      if (problems.length === 0) {
        for (const [tensor, shard] of Object.entries(weightMap)) {
          const found = tensors.get(tensor);
          if (!found || basename(found.file.path) !== shard) problems.push(`${tensor} is not in ${shard}`);
        }
      }
      if (problems.length > 0) throw new InputError("CHECKPOINT_INVALID", indexPath, problems);
      return new Checkpoint(directory, files, tensors);
    } catch (error) {
      for (const file of files) file.dispose();
      throw error;
    }
  }

  readFloat32(name: string, target: Float32Array, start?: number, observe?: ByteObserver): Float32Array {
    return this.tensors.get(name)!.file.readFloat32(name, target, start, observe);
  }

  dispose(): void {
    for (const file of this.#files) file.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
