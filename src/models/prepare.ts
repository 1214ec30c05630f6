/** @file Prepares a model: its weights in the form they have at run time, in the cache or as a directory of their own. */
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { InputError, readText, reasonOf, writeDirectoryAtomic } from "../base/index.ts";
import { Backbone, type BackboneOptions, openTensors } from "./backbone.ts";
import { cacheDirectory, knownDigest, preparedPath, rememberDigest } from "./cache.ts";
import { calibrationRows, moments } from "./calibrate.ts";
import { copyDescription } from "./description.ts";
import { type Factors, factorize, quantizeRowsFaithfully } from "./feedback.ts";
import { quantizedNames } from "./forward.ts";
import { openPrepared, PREPARED, type PreparedInfo, readPreparedInfo, writePrepared } from "./prepared.ts";
import { resolveModel } from "./pull.ts";
import type { QuantizedLinear } from "./quantize.ts";
import { held } from "./weights.ts";

export interface PrepareOptions extends Pick<BackboneOptions, "weights" | "blockSize"> {
  /** A directory to write, whole and usable as a model; default: the weights go into the cache. */
  readonly output?: string | undefined;
  /** A file of text: quantisation is made faithful to what the model sees in it. Needs `output`. */
  readonly calibrate?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Of calibrated quantisation, the share that is done. */
  readonly onProgress?: ((share: number) => void) | undefined;
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
 * @throws InputError what loading throws, OUTPUT_EXISTS, OUTPUT_UNWRITABLE, WEIGHTS_PREPARED
 */
export async function prepareModel(name: string, options: PrepareOptions = {}): Promise<Prepared> {
  try {
    return await prepare(resolveModel(name), options);
  } catch (error) {
    const { code, syscall } = error as NodeJS.ErrnoException;
    if (syscall === undefined || !["EACCES", "EPERM", "EROFS", "ENOSPC", "ENOTDIR"].includes(code ?? "")) throw error;
    throw new InputError("OUTPUT_UNWRITABLE", options.output ?? cacheDirectory(), reasonOf(error), { cause: error });
  }
}

async function prepare(model: string, options: PrepareOptions): Promise<Prepared> {
  const { output, calibrate, signal, onProgress, ...form } = options;
  if (output !== undefined && existsSync(output)) {
    throw new InputError("OUTPUT_EXISTS", output, "exists already; remove it or choose another directory");
  }
  if (existsSync(join(model, PREPARED))) {
    throw new InputError("WEIGHTS_PREPARED", model, "is prepared already; give the model it was made of");
  }
  if (calibrate !== undefined && (output === undefined || form.weights === "float32")) {
    const problem =
      output === undefined
        ? "gives other numbers than loading does, so it needs --output, a model to be named on its own"
        : "is about quantisation; choose int4 or int8";
    throw new InputError("FLAG_INVALID", "--calibrate", problem);
  }
  using backbone = await Backbone.load(model, output === undefined ? form : { ...form, cached: false });
  if (calibrate !== undefined) await requantize(backbone, model, calibrate, { signal, onProgress });
  if (output !== undefined) {
    await writeDirectoryAtomic(output, async (directory) => {
      copyDescription(model, directory);
      await writePrepared(join(directory, PREPARED), backbone, calibrate === undefined ? undefined : "calibrated");
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

/** Quantises a backbone's weights anew, in place, faithful to a text. */
async function requantize(
  backbone: Backbone,
  model: string,
  textFile: string,
  { signal, onProgress }: PrepareOptions,
): Promise<void> {
  const { config, weights: form } = backbone;
  if (form.kind === "float32") return;
  const { kind, blockSize } = form;
  const rows = calibrationRows(backbone, readText(textFile), textFile);
  const tensors = backbone.initializers();
  using source = openTensors(model);
  const all = held(config, form).filter(({ quantized }) => quantized);
  let done = 0;
  // What a module sees is looked at in 8 bits, which is as good as float32 for this, and leaves int4 untouched until then.
  using observed = await Backbone.load(model, { weights: "int8", cached: false });
  for await (const pass of moments(observed, rows)) {
    const factors = new Map<Float64Array, Factors>();
    for (const { info, source: name } of all) {
      const own = pass.get(info.name);
      if (own === undefined) continue;
      if (!factors.has(own)) {
        factors.clear(); // weights that read the same follow each other
        factors.set(own, await factorize(own));
      }
      const [outFeatures, inFeatures] = info.shape as [number, number];
      const names = quantizedNames(info.name, kind);
      const target: QuantizedLinear = {
        bits: kind === "int4" ? 4 : 8,
        blockSize,
        outFeatures,
        inFeatures,
        quantized: tensors.get(names.quantized)!.data as Uint8Array,
        scales: tensors.get(names.scales)!.data as Uint16Array,
      };
      const step = Math.max(1, Math.floor(2 ** 20 / inFeatures));
      for (let row = 0; row < outFeatures; row += step) {
        signal?.throwIfAborted();
        const values = new Float32Array(Math.min(step, outFeatures - row) * inFeatures);
        source.readFloat32(name, values, row * inFeatures);
        await quantizeRowsFaithfully(values, target, row, factors.get(own)!);
        onProgress?.((done + (row + step) / outFeatures) / all.length);
      }
      done++;
    }
  }
}

function isSound(path: string, { config }: Backbone): boolean {
  if (!existsSync(path)) return false;
  try {
    const { tensors, mapping } = openPrepared(path, config).weights;
    for (const tensor of tensors.values()) tensor.dispose();
    mapping?.dispose();
    return true;
  } catch {
    rmSync(path, { force: true });
    return false;
  }
}
