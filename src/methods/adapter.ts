/** @file An adapter: a method, its config and its tensors; read from and written to PEFT directories, strictly. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import { InputError, parseWith, Random, readJson, writeDirectoryAtomic, writeFileAtomic } from "../base/index.ts";
import {
  type BackboneConfig,
  SafetensorsFile,
  type Site,
  type TensorEntry,
  writeSafetensors,
} from "../models/index.ts";
import { Tensor } from "../runtime/index.ts";
import type { Init, Method, ParameterSpec, PlannedRun, Successor } from "./method.ts";
import { NumbersFile } from "./numbers-file.ts";
import { methodOfConfig } from "./registry.ts";

export const CONFIG_FILE = "adapter_config.json";
export const WEIGHTS_FILE = "adapter_model.safetensors";

/** Floats to which each tensor's start in a flat buffer is rounded up: 64 bytes. */
const ALIGNMENT = 16;

type Group = ParameterSpec["group"];

interface FlatBuffer {
  readonly tensor: Tensor; // float32 [n]
  readonly offsets: ReadonlyMap<string, number>;
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

function allocate(specs: readonly ParameterSpec[], group: Group): FlatBuffer | undefined {
  const offsets = new Map<string, number>();
  let end = 0;
  for (const { key, shape, group: g } of specs) {
    if (g !== group) continue;
    offsets.set(key, end);
    end += Math.ceil(sizeOf(shape) / ALIGNMENT) * ALIGNMENT;
  }
  // Pruning may leave tensors of no element at all.
  return offsets.size === 0 ? undefined : { tensor: Tensor.allocate("float32", [Math.max(end, ALIGNMENT)]), offsets };
}

/** Memory of all parameters: one buffer a group, and a view on each parameter. */
interface Memory {
  readonly flat: ReadonlyMap<Group, FlatBuffer>;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

function allocateAll(specs: readonly ParameterSpec[]): Memory {
  const flat = new Map<Group, FlatBuffer>();
  for (const group of ["weights", "activation"] as const) {
    const buffer = allocate(specs, group);
    if (buffer) flat.set(group, buffer);
  }
  const views = specs.map(({ key, shape, group }) => {
    const { tensor, offsets } = flat.get(group)!;
    return [key, tensor.view(offsets.get(key)!, shape)] as const;
  });
  return { flat, tensors: new Map(views) };
}

function free({ flat, tensors }: Memory): void {
  for (const tensor of tensors.values()) tensor.dispose();
  for (const { tensor } of flat.values()) tensor.dispose();
}

function bytesOf(specs: readonly ParameterSpec[]): number {
  return specs.reduce((sum, { shape }) => sum + 4 * Math.ceil(sizeOf(shape) / ALIGNMENT) * ALIGNMENT, 0);
}

/** JSON with sorted keys, so that it does not matter how a config came about. */
function canonical(config: unknown): string {
  return JSON.stringify(config, (_, value: unknown) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
}

/** Squared row norms of a site's frozen weight, float32 [out]; `Backbone.squaredNorms`. */
export type NormSource = { squaredNorms(site: Site): Float32Array };

function fill(target: Float32Array, init: Init, random: Random, norms: NormSource | undefined): void {
  if (init.kind === "zeros") target.fill(0);
  else if (init.kind === "values") target.set(init.values);
  else if (init.kind === "normal") for (let i = 0; i < target.length; i++) target[i] = init.std * random.normal();
  else if (init.kind === "rowNorms") {
    if (!norms) throw new Error("this method starts from the backbone's weights, and none were given");
    target.set(norms.squaredNorms(init.site).map(Math.sqrt));
  } else {
    const bound = 1 / Math.sqrt(init.fanIn); // sqrt(6 / ((1 + 5) · fanIn))
    for (let i = 0; i < target.length; i++) target[i] = bound * (2 * random.uniform() - 1);
  }
}

/** Numbers that are read from a file at a time: 1 MiB, which takes about a millisecond. */
const SLICE = 256 * 1024;

/** No number is infinite or NaN: none has all bits of its exponent set. */
function finite(values: Float32Array): boolean {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) if ((bits[i]! & 0x7f800000) === 0x7f800000) return false;
  return true;
}

const FLOATS = ["F32", "F16", "BF16", "F64"];

function fits(entry: TensorEntry | undefined, { shape }: ParameterSpec): entry is TensorEntry {
  return entry?.shape.join() === shape.join() && FLOATS.includes(entry.storedDType);
}

/** Every way in which the tensors of a file differ from what the config asks for. */
function misfits(specs: readonly ParameterSpec[], file: SafetensorsFile): string[] {
  const problems: string[] = [];
  const expected = new Set(specs.map(({ key }) => key));
  for (const { key, shape } of specs) {
    const found = file.entries.get(key);
    if (found === undefined) problems.push(`${key} [${shape.join(", ")}] is missing`);
    else if (found.shape.join() !== shape.join()) {
      problems.push(`${key} is [${found.shape.join(", ")}], expected [${shape.join(", ")}]`);
    } else if (!FLOATS.includes(found.storedDType)) {
      problems.push(`${key} is ${found.storedDType}, expected F32, F16 or BF16`);
    }
  }
  for (const key of file.entries.keys()) if (!expected.has(key)) problems.push(`${key} is not used by this adapter`);
  return problems;
}

function mismatch(path: string, problems: readonly string[]): InputError {
  return new InputError("ADAPTER_MISMATCH", `${path} does not fit its config and this backbone`, problems);
}

function readConfig(directory: string): { method: Method; config: unknown } {
  const path = join(directory, CONFIG_FILE);
  const raw = readJson(path, z.looseObject({ peft_type: z.string({ error: "is missing or no text" }) }));
  const method = methodOfConfig(raw, path);
  return { method, config: parseWith(method.configSchema, raw, path) };
}

/** adapter_config.json and adapter_model.safetensors, each atomically. */
function writeFiles(directory: string, config: unknown, tensors: ReadonlyMap<string, Tensor>): void {
  writeFileAtomic(join(directory, CONFIG_FILE), `${JSON.stringify(config, null, 2)}\n`);
  writeSafetensors(join(directory, WEIGHTS_FILE), tensors, { format: "pt" });
}

/**
 * An adapter of one backbone. Its float32 tensors are views into one flat buffer per parameter group, which is what
 * the optimizer works on; they belong to the adapter and go with it.
 */
export class Adapter implements Disposable {
  readonly method: Method;
  readonly config: unknown;
  readonly backbone: BackboneConfig;
  readonly specs: readonly ParameterSpec[];
  #memory: Memory | undefined;
  /** Where its numbers are, until they are in memory of its own. */
  #file: NumbersFile | undefined;
  #disposed = false;

  /** @param file its numbers, which are read when they are asked for; without one the tensors are there, of zeros */
  private constructor(method: Method, config: unknown, backbone: BackboneConfig, file?: NumbersFile) {
    this.method = method;
    this.config = method.configSchema.parse(config); // its keys in one order, however it came about
    this.backbone = backbone;
    this.specs = method.parameters(this.config, backbone);
    if (file) this.#file = file;
    else this.#memory = allocateAll(this.specs);
  }

  /**
   * A fresh adapter: `options` over the method's defaults, parameters drawn from `seed`.
   * @param norms the backbone itself; only methods that start from its weights (DoRA) need it
   * @param run that it is made for; methods with a schedule of their own (AdaLoRA) need it
   */
  static create(
    method: Method,
    options: Readonly<Record<string, unknown>>,
    backbone: BackboneConfig,
    seed: number,
    norms?: NormSource,
    run?: PlannedRun,
  ): Adapter {
    const adapter = new Adapter(method, method.newConfig(options, backbone, run), backbone);
    const random = new Random(seed);
    for (const { key, init } of adapter.specs) fill(adapter.values(key), init, random, norms);
    return adapter;
  }

  /** The adapter that this one becomes; parameters for which `next` gives no numbers are drawn from `seed`. */
  succeededBy(next: Successor<unknown>, seed: number, norms?: NormSource): Adapter {
    const adapter = new Adapter(this.method, next.config, this.backbone);
    const random = new Random(seed);
    for (const { key, init } of adapter.specs) {
      const values = next.values?.(key);
      if (values) adapter.values(key).set(values);
      else fill(adapter.values(key), init, random, norms);
    }
    return adapter;
  }

  /**
   * Reads a PEFT directory. Throws `InputError` listing every missing, unused, ill-shaped or non-finite tensor, and
   * refuses an adapter that would change nothing unless `allowIdentity` (a training run's first checkpoint).
   */
  static load(directory: string, backbone: BackboneConfig, options: { allowIdentity?: boolean } = {}): Adapter {
    const steps = Adapter.loading(directory, backbone, options);
    let step = steps.next();
    while (!step.done) step = steps.next();
    return step.value;
  }

  /**
   * An adapter that was loaded strictly before, so that its numbers need not be looked through again: they are read off
   * the file when something asks for them, and become tensors when something asks for those.
   *
   * @param open the file of tensors; called anew when it is needed after `closeFile`
   * @throws InputError ADAPTER_MISMATCH where the file is not one for the config and this backbone; what `open` throws
   */
  static lazily(directory: string, backbone: BackboneConfig, open: () => SafetensorsFile): Adapter {
    const { method, config } = readConfig(directory);
    const file = new NumbersFile(open);
    const adapter = new Adapter(method, config, backbone, file);
    const opened = file.opened();
    const problems = misfits(adapter.specs, opened);
    if (problems.length === 0) return adapter;
    file.close();
    throw mismatch(opened.path, problems);
  }

  /**
   * `load` in steps of at most `SLICE` numbers, for who has other work to do in between. Yields the bytes that the
   * tensors take, for the first time before they are allocated. Left early (`return()`), it frees them.
   */
  static *loading(
    directory: string,
    backbone: BackboneConfig,
    options: { allowIdentity?: boolean } = {},
  ): Generator<number, Adapter> {
    const { method, config } = readConfig(directory);
    const weightsPath = join(directory, WEIGHTS_FILE);
    using file = SafetensorsFile.open(weightsPath);
    const specs = method.parameters(config, backbone);
    const bytes = bytesOf(specs);
    const problems = misfits(specs, file);
    function* read({ key, shape }: ParameterSpec, target?: Float32Array): Generator<number, void> {
      const size = sizeOf(shape);
      let sound = true;
      for (let start = 0; start < size; start += SLICE) {
        const length = Math.min(SLICE, size - start);
        const part = target?.subarray(start, start + length) ?? new Float32Array(length);
        if (!finite(file.readFloat32(key, part, start))) sound = false;
        yield bytes;
      }
      if (!sound) problems.push(`${key} has numbers that are not finite`);
    }
    if (problems.length) {
      // Nothing is allocated for a config that the file does not bear out; what does fit is still looked through.
      for (const spec of specs) if (fits(file.entries.get(spec.key), spec)) yield* read(spec);
      throw mismatch(weightsPath, problems);
    }
    yield bytes;
    const adapter = new Adapter(method, config, backbone);
    let loaded = false;
    try {
      for (const spec of specs) yield* read(spec, adapter.values(spec.key));
      const values = (key: string) => adapter.values(key);
      if (!problems.length && !options.allowIdentity && method.isIdentity(config, backbone, values)) {
        problems.push("would change nothing (its output matrices are zero); it is not an adapter worth loading");
      }
      if (problems.length) throw new InputError("ADAPTER_INVALID", weightsPath, problems);
      loaded = true;
      return adapter;
    } finally {
      if (!loaded) adapter.dispose();
    }
  }

  /** float32, by key of adapter_model.safetensors. */
  get tensors(): ReadonlyMap<string, Tensor> {
    return this.#own().tensors;
  }

  /** What its tensors take, in bytes, also before they are made. */
  get byteLength(): number {
    return bytesOf(this.specs);
  }

  /** What of its tensors is in memory, in bytes. */
  get heldBytes(): number {
    return this.#memory ? this.byteLength : 0;
  }

  /** The numbers of one parameter: a live view; of an adapter of `lazily`, until its tensors are made, to be read only. */
  values(key: string): Float32Array {
    const memory = this.#memory;
    if (!memory && this.#file) return this.#file.opened().float32(key);
    return this.tensors.get(key)!.data as Float32Array;
  }

  /** Takes the arrays back that `values` gave, see `Tensor.closeData`. */
  closeValues(): void {
    this.closeFile();
    for (const { tensor } of this.#memory?.flat.values() ?? []) tensor.closeData();
  }

  /** Lets go of the file that numbers are read off, and of what `values` gave of it; it is opened anew when it is needed. */
  closeFile(): void {
    this.#file?.close();
  }

  /** The flat buffer of a group, float32 [n]; undefined when the method has no such parameters. */
  flat(group: Group): Tensor | undefined {
    return this.#own().flat.get(group)?.tensor;
  }

  /** Where each tensor starts in its group's flat buffer, in elements. */
  offsets(group: Group): ReadonlyMap<string, number> {
    return this.#own().flat.get(group)?.offsets ?? new Map();
  }

  /** Its memory, filled from the file the first time. */
  #own(): Memory {
    if (this.#memory) return this.#memory;
    if (this.#disposed || !this.#file) throw new Error("the adapter was disposed");
    const file = this.#file.opened();
    const memory = allocateAll(this.specs);
    try {
      for (const [key, tensor] of memory.tensors) file.readFloat32(key, tensor.data as Float32Array);
    } catch (error) {
      free(memory);
      throw error;
    }
    this.closeFile();
    this.#file = undefined;
    this.#memory = memory;
    return memory;
  }

  /** SHA-256 over config and tensors, as they would be saved: the adapter's identity. Computed anew at each call. */
  get digest(): string {
    const hash = createHash("sha256").update(canonical(this.config));
    for (const [key, tensor] of this.tensors) {
      const { buffer, byteOffset, byteLength } = tensor.data;
      hash.update(JSON.stringify([key, tensor.shape])).update(new Uint8Array(buffer, byteOffset, byteLength));
    }
    return hash.digest("hex");
  }

  /** Writes config and tensors as they are into an existing directory, for training to go on from. */
  saveInto(directory: string): void {
    writeFiles(directory, this.config, this.tensors);
  }

  /** Writes the adapter, in its form for use, as a directory of its own, replacing it as a whole. */
  async save(directory: string): Promise<void> {
    const exported = this.method.export?.(this.config, this.backbone, this.tensors);
    try {
      await writeDirectoryAtomic(directory, (temporary) => {
        writeFiles(temporary, exported?.config ?? this.config, exported?.tensors ?? this.tensors);
      });
    } finally {
      for (const tensor of exported?.tensors.values() ?? []) tensor.dispose();
    }
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  dispose(): void {
    this.#disposed = true;
    this.closeFile();
    if (this.#memory) free(this.#memory);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
