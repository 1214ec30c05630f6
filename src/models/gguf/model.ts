/** @file A GGUF model: its tensors under the checkpoint's names, in the checkpoint's layout, read and dequantised row by row. */
import { closeSync, existsSync, fstatSync, readSync, statSync } from "node:fs";
import { InputError, openRegularFile, reasonOf } from "../../base/index.ts";
import type { QuantizedLinear } from "../quantize.ts";
import type { ByteObserver } from "../safetensors.ts";
import type { SourceTensor, TensorSource } from "../tensor-source.ts";
import { architectureOf, configOf } from "./config.ts";
import { DEQUANTIZERS } from "./dequantize.ts";
import { type GgufHeader, type GgufTensor, readGgufHeader } from "./header.ts";
import { checkpointName, PERMUTED, storedRow } from "./names.ts";
import { repack } from "./repack.ts";

/** Bytes read at a time. */
const CHUNK_BYTES = 1024 * 1024;
const SHARD = /-(\d{5})-of-(\d{5})\.gguf$/;

interface OpenFile {
  readonly path: string;
  readonly handle: number;
  readonly header: GgufHeader;
}

interface Mapped extends SourceTensor {
  readonly file: OpenFile;
  readonly tensor: GgufTensor;
  /** Rows of one head, where the file has them interleaved. */
  readonly headRows: number | undefined;
  /** Added to the stored numbers. */
  readonly shift: number;
}

function openFile(path: string): OpenFile {
  const handle = openRegularFile(path);
  try {
    return { path, handle, header: readGgufHeader(handle, fstatSync(handle).size, path) };
  } catch (error) {
    closeSync(handle);
    throw error;
  }
}

/** Paths of all parts of a model that is split over several files, the first one first. */
function partsOf(path: string): string[] {
  const match = SHARD.exec(path);
  if (!match) return [path];
  const stem = path.slice(0, match.index);
  const count = Number(match[2]);
  if (count < 1 || count > 1000) throw new InputError("GGUF_INVALID", path, `names itself a part of ${count} files`);
  const paths = Array.from(
    { length: count },
    (_, i) => `${stem}-${String(i + 1).padStart(5, "0")}-of-${match[2]}.gguf`,
  );
  const missing = paths.filter((part) => !existsSync(part));
  if (missing.length > 0) {
    throw new InputError(
      "FILE_UNREADABLE",
      path,
      missing.slice(0, 20).map((part) => `the part ${part} is missing`),
    );
  }
  return paths;
}

export class GgufModel implements TensorSource {
  readonly path: string;
  readonly readable = Object.keys(DEQUANTIZERS);
  /** By the checkpoint's names; what the architecture does not know keeps its own. */
  readonly tensors: ReadonlyMap<string, Mapped>;
  /** Of the first file. */
  readonly metadata: GgufHeader["metadata"];
  /** As config.json would have it. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly #files: readonly OpenFile[];
  #chunk: Uint8Array | undefined;
  /** Which head of which tensor `#chunk` holds. */
  #held: { entry: Mapped; first: number } | undefined;

  /** Whether a path names a GGUF file, not a model directory. */
  static is(path: string): boolean {
    return existsSync(path) && statSync(path).isFile();
  }

  private constructor(path: string, files: readonly OpenFile[]) {
    this.path = path;
    this.#files = files;
    this.metadata = files[0]!.header.metadata;
    const architecture = architectureOf(this.metadata, path);
    const all = new Map<string, { file: OpenFile; tensor: GgufTensor }>();
    const problems: string[] = [];
    for (const file of files) {
      for (const [name, tensor] of file.header.tensors) {
        if (all.has(name)) problems.push(`tensor ${JSON.stringify(name)} is in more than one part`);
        all.set(name, { file, tensor });
      }
    }
    if (problems.length > 0) throw new InputError("GGUF_INVALID", path, problems);
    const factors = (name: string): number[] | undefined => {
      const found = all.get(name);
      if (found === undefined || found.tensor.type.name !== "F32" || found.tensor.bytes > 65536) return undefined;
      all.delete(name);
      const values = new Float32Array(found.tensor.bytes / 4);
      this.#read(found.file, new Uint8Array(values.buffer), found.tensor.begin);
      return [...values];
    };
    const [every, short, long] = ["rope_freqs", "rope_factors_short", "rope_factors_long"].map((name) =>
      factors(`${name}.weight`),
    );
    const tensors = new Map([...all].map(([name, { tensor }]) => [name, tensor]));
    this.config = configOf({ metadata: this.metadata, tensors }, path, {
      ...(every ? { all: every } : {}),
      ...(short ? { short } : {}),
      ...(long ? { long } : {}),
    });
    const mapped = new Map<string, Mapped>();
    for (const [name, { file, tensor }] of all) {
      const known = checkpointName(name, architecture);
      const heads = this.config[name.includes("attn_q.") ? "num_attention_heads" : "num_key_value_heads"];
      const permuted = architecture.permuted === true && known !== undefined && PERMUTED.test(known);
      mapped.set(known ?? name, {
        file,
        tensor,
        shape: tensor.shape,
        storedDType: tensor.type.name,
        headRows: permuted ? this.#headRows(tensor, heads) : undefined,
        shift: architecture.shiftedNorms && known?.endsWith("norm.weight") ? -1 : 0,
      });
    }
    this.tensors = mapped;
  }

  /**
   * Opens a model and checks its headers; of a model in several files any one may be named.
   * @throws InputError `FILE_UNREADABLE`, `GGUF_INVALID`, `CONFIG_UNSUPPORTED`
   */
  static open(path: string): GgufModel {
    const files: OpenFile[] = [];
    try {
      for (const part of partsOf(path)) files.push(openFile(part));
      const count = files[0]!.header.metadata.get("split.count") ?? 1;
      if (count !== files.length && !(count === 0 && files.length === 1)) {
        const problem = `is one of ${String(count)} parts; their names must end in -00001-of-0000N.gguf, all in one directory`;
        throw new InputError("GGUF_INVALID", path, problem);
      }
      return new GgufModel(path, files);
    } catch (error) {
      for (const { handle } of files) closeSync(handle);
      throw error;
    }
  }

  readFloat32(name: string, target: Float32Array, start = 0, observe?: ByteObserver): Float32Array {
    const entry = this.tensors.get(name)!;
    const dequantize = DEQUANTIZERS[entry.storedDType]!;
    const { columns } = rowsOf(entry);
    let done = 0;
    for (const bytes of this.#rows(entry, start / columns, (start + target.length) / columns)) {
      observe?.(bytes);
      const count = (bytes.length / entry.tensor.type.bytes) * entry.tensor.type.weights;
      dequantize(bytes, target.subarray(done, done + count));
      done += count;
    }
    if (entry.shift !== 0) for (let i = 0; i < target.length; i++) target[i]! += entry.shift;
    return target;
  }

  readQuantized(name: string, target: QuantizedLinear, observe?: ByteObserver): boolean {
    const entry = this.tensors.get(name)!;
    const move = repack(entry.storedDType, target, name);
    if (move === undefined || entry.shift !== 0) return false;
    let block = 0;
    for (const bytes of this.#rows(entry, 0, target.outFeatures)) {
      observe?.(bytes);
      move(bytes, block);
      block += bytes.length / entry.tensor.type.bytes;
    }
    return true;
  }

  /** The stored bytes of rows `from` … `to` of the checkpoint's tensor, one or more rows at a time. */
  *#rows(entry: Mapped, from: number, to: number): Generator<Uint8Array> {
    const { rowBytes } = rowsOf(entry);
    const { file, tensor, headRows } = entry;
    if (headRows === undefined) {
      const step = Math.max(1, Math.floor(CHUNK_BYTES / rowBytes));
      const chunk = this.#scratch(Math.min(step, to - from) * rowBytes);
      for (let row = from; row < to; row += step) {
        const bytes = chunk.subarray(0, Math.min(step, to - row) * rowBytes);
        this.#read(file, bytes, tensor.begin + row * rowBytes);
        yield bytes;
      }
      return;
    }
    for (let row = from; row < to; row++) {
      const first = row - (row % headRows);
      if (this.#held?.entry !== entry || this.#held.first !== first) {
        const head = this.#scratch(headRows * rowBytes).subarray(0, headRows * rowBytes);
        this.#read(file, head, tensor.begin + first * rowBytes);
        this.#held = { entry, first };
      }
      const at = (storedRow(row, headRows) - first) * rowBytes;
      yield this.#chunk!.subarray(at, at + rowBytes);
    }
  }

  #scratch(bytes: number): Uint8Array {
    this.#held = undefined;
    if (this.#chunk === undefined || this.#chunk.length < bytes)
      this.#chunk = new Uint8Array(Math.max(bytes, CHUNK_BYTES));
    return this.#chunk;
  }

  #headRows({ shape, name }: GgufTensor, heads: unknown): number {
    const rows = shape[0]! / Number(heads);
    if (Number.isInteger(rows) && rows % 2 === 0 && rows > 0) return rows;
    throw new InputError("GGUF_INVALID", this.path, `tensor ${name}: ${shape[0]} rows are not ${String(heads)} heads`);
  }

  #read({ handle, path }: OpenFile, target: Uint8Array, position: number): void {
    for (let done = 0; done < target.byteLength; ) {
      let got: number;
      try {
        got = readSync(handle, target, done, target.byteLength - done, position + done);
      } catch (error) {
        throw new InputError("FILE_UNREADABLE", path, reasonOf(error), { cause: error });
      }
      if (got === 0) throw new InputError("GGUF_INVALID", path, "the file became shorter while it was read");
      done += got;
    }
  }

  dispose(): void {
    for (const { handle } of this.#files) closeSync(handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A tensor seen as rows; one of one dimension that is permuted has rows of a single number. */
function rowsOf({ tensor, headRows }: Mapped): { columns: number; rowBytes: number } {
  const columns = headRows !== undefined && tensor.shape.length === 1 ? 1 : (tensor.shape.at(-1) ?? 1);
  return { columns, rowBytes: (columns / tensor.type.weights) * tensor.type.bytes };
}
