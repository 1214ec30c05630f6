/** @file Prepared weights: exactly the initializers of a backbone in one file, which is mapped and not read. */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { z } from "zod";
import { InputError, parseWith, sum, writeStreamAtomic } from "../base/index.ts";
import { FileMapping, Tensor, type TensorData } from "../runtime/index.ts";
import type { BackboneConfig } from "./config.ts";
import type { WeightForm } from "./forward.ts";
import { bytesOf, SafetensorsFile, type StoredTensor, safetensorsHeader } from "./safetensors.ts";
import { storedDType } from "./safetensors-header.ts";
import { numericConfig, storedLayout, type Weights } from "./weights.ts";

/** Name of the file in a directory that `milora model prepare --output` has written. */
export const PREPARED = "prepared.safetensors";
const FORMAT = "milora-prepared";
const VERSION = "2";
/** The data begin on a multiple of this, and every tensor whose size allows it. */
const ALIGNMENT = 64;
const PIECE_BYTES = 2 ** 23;

const metadataSchema = z.object({
  format: z.literal(FORMAT, { error: "is no file of prepared weights" }),
  version: z.literal(VERSION, { error: `is of another version than ${VERSION}; prepare the model anew` }),
  digest: z.string().regex(/^[0-9a-f]{64}$/),
  weights: z.enum(["float32", "int8", "int4"]),
  block_size: z.coerce.number().optional(),
  quantizer: z.string().optional(),
  config: z.string(),
  data_sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

export interface PreparedInfo {
  readonly form: WeightForm;
  /** Of the model that was prepared, see `Backbone.digest`. */
  readonly digest: string;
  /** How it was quantised, in words; undefined where as in loading. */
  readonly quantizer: string | undefined;
  readonly dataSha256: string;
  /** Bytes of all tensors. */
  readonly bytes: number;
}

/** Bytes of a model's weights in a form, in memory and as a prepared file. */
export function weightBytes(config: BackboneConfig, form: WeightForm): number {
  const sizes = [...storedLayout(config, form).tensors.values()].map(
    ({ dtype, shape }) => storedDType(dtype).bytes * shape.reduce((a, b) => a * b, 1),
  );
  return sum(sizes);
}

/** What of a config decides which numbers the weights are. */
function configDigest(config: BackboneConfig): string {
  return createHash("sha256").update(numericConfig(config)).digest("hex");
}

export interface PreparedSource {
  readonly config: BackboneConfig;
  readonly weights: WeightForm;
  readonly digest: string;
  initializers(): ReadonlyMap<string, Tensor>;
}

/** Writes a backbone's weights to `path`, atomically. @param quantizer how, where not as in loading */
export async function writePrepared(path: string, backbone: PreparedSource, quantizer?: string): Promise<void> {
  const { config, weights: form, digest } = backbone;
  const tensors = backbone.initializers();
  const layout = storedLayout(config, form).tensors;
  const stored = new Map([...layout].map(([name]) => [name, tensors.get(name)! as StoredTensor]));
  const hash = createHash("sha256");
  for (const [, { data }] of safetensorsHeader(stored).order) {
    for (const bytes of bytesOf(data)) {
      hash.update(bytes);
      await setImmediate();
    }
  }
  const metadata = {
    format: FORMAT,
    version: VERSION,
    digest,
    weights: form.kind,
    ...(form.kind !== "float32" && { block_size: String(form.blockSize) }),
    ...(quantizer !== undefined && { quantizer }),
    config: configDigest(config),
    data_sha256: hash.digest("hex"),
  };
  const { header, order } = safetensorsHeader(stored, metadata, ALIGNMENT);
  await writeStreamAtomic(
    path,
    (async function* () {
      yield* inPieces(header, ...order.map(([, { data }]) => data));
    })(),
  );
}

/**
 * All bytes in pieces that begin at multiples of their size; a piece is good until the next one is asked for. Linux keeps what is
 * written so in large pages, which are mapped as such.
 */
function* inPieces(...arrays: readonly TensorData[]): Generator<Uint8Array> {
  const piece = new Uint8Array(PIECE_BYTES);
  let filled = 0;
  for (const array of arrays) {
    for (const bytes of bytesOf(array)) {
      for (let done = 0; done < bytes.length; ) {
        const part = bytes.subarray(done, done + piece.length - filled);
        piece.set(part, filled);
        filled += part.length;
        done += part.length;
        if (filled < piece.length) continue;
        yield piece;
        filled = 0;
      }
    }
  }
  if (filled > 0) yield piece.subarray(0, filled);
}

function infoOf(file: SafetensorsFile): PreparedInfo & { config: string } {
  const given = parseWith(metadataSchema, file.metadata, file.path);
  const { weights: kind, block_size: blockSize = 32 } = given;
  return {
    form: kind === "float32" ? { kind } : { kind, blockSize },
    digest: given.digest,
    quantizer: given.quantizer,
    dataSha256: given.data_sha256,
    bytes: [...file.entries.values()].reduce((total, { begin, end }) => total + end - begin, 0),
    config: given.config,
  };
}

/** What a prepared file says of itself. @throws InputError */
export function readPreparedInfo(path: string): PreparedInfo {
  using file = SafetensorsFile.open(path);
  return infoOf(file);
}

/**
 * Maps prepared weights. Their header is checked, and that they are what `config` asks for, to the byte; the numbers
 * themselves are not looked at (`verifyPrepared` does that).
 * @throws InputError SAFETENSORS_INVALID, CONFIG_INVALID, CHECKPOINT_INVALID
 */
export function openPrepared(path: string, config: BackboneConfig): { info: PreparedInfo; weights: Weights } {
  using file = SafetensorsFile.open(path);
  const info = infoOf(file);
  const layout = storedLayout(config, info.form).tensors;
  const problems: string[] = [];
  if (info.config !== configDigest(config)) problems.push("was prepared with another config.json; prepare it anew");
  for (const [name, { dtype, shape }] of layout) {
    const entry = file.entries.get(name);
    const stored = storedDType(dtype).name;
    if (!entry) problems.push(`${name} is missing`);
    else if (entry.storedDType !== stored || String(entry.shape) !== String(shape)) {
      const [is, should] = [`${entry.storedDType} [${entry.shape}]`, `${stored} [${shape}]`];
      problems.push(`${name} is ${is}, not ${should}`);
    } else if ((file.dataStart + entry.begin) % storedDType(dtype).bytes !== 0) {
      problems.push(`${name} begins between two numbers, where it cannot be mapped`);
    }
  }
  for (const name of file.entries.keys()) if (!layout.has(name)) problems.push(`${name} is not a weight of this model`);
  if (problems.length > 0) throw new InputError("CHECKPOINT_INVALID", path, problems);
  const mapping = FileMapping.open(path);
  const tensors = new Map<string, Tensor>();
  for (const [name, { dtype, shape }] of layout) {
    const { begin } = file.entries.get(name)!;
    tensors.set(name, Tensor.mapped(dtype, shape, mapping, file.dataStart + begin));
  }
  return { info, weights: { tensors, digest: info.digest, mapping } };
}

/** Reads all of a prepared file and compares it with its checksum. @throws InputError CHECKPOINT_INVALID */
export async function verifyPrepared(path: string): Promise<PreparedInfo> {
  using file = SafetensorsFile.open(path);
  const info = infoOf(file);
  const hash = createHash("sha256");
  for (const name of file.entries.keys()) {
    for (const bytes of bytesOf(file.read(name).data)) hash.update(bytes);
    await setImmediate();
  }
  if (hash.digest("hex") === info.dataSha256) return info;
  throw new InputError("CHECKPOINT_INVALID", path, "its numbers are not those that were written; prepare it anew");
}
