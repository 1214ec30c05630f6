/** @file Tensors: typed, shaped memory that sessions read and write in place, owned by JavaScript or by the runtime. */
import koffi from "koffi";
import { check, out, outPointer } from "./api.ts";
import { describe } from "./describe.ts";
import { copiesItself, copyThrough, type DeviceName, deviceAllocator, deviceMemoryInfo } from "./devices.ts";
import { bytesOf, DTYPES, type DType, type TensorData } from "./dtypes.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { unwatchLeak, watchLeak } from "./leaks.ts";
import type { Pointer } from "./library.ts";
import type { FileMapping } from "./mapping.ts";
import { Memory } from "./memory.ts";
import { requireUsable, TensorHandle } from "./tensor-handle.ts";

/**
 * A value of its own over the memory of a tensor, which it keeps alive: initializers must not own their memory in the
 * runtime's eyes, and a value over an address never does. The caller releases it.
 */
export let borrow: (tensor: Tensor) => TensorHandle;

/** The handle of a tensor, for this room only. */
export let handleOf: (tensor: Tensor) => TensorHandle;
/** Wraps an OrtValue that a run has created; the tensor owns it. */
export let adoptValue: (value: Pointer, device: DeviceName) => Tensor;

/**
 * A dense tensor in row-major order.
 *
 * Owns native memory or shares JavaScript memory; release it with `dispose()` or `using`. Memory that views and
 * sessions still use stays until they have gone too.
 */
export class Tensor implements Disposable {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly size: number;
  readonly byteLength: number;
  readonly #handle: TensorHandle;
  /** Where this tensor starts in its memory. */
  readonly #byteOffset: number;
  #data: TensorData | undefined;

  static {
    handleOf = (tensor) => tensor.#handle;
    borrow = (tensor) => {
      const { memory } = tensor.#handle;
      const value = createValue(tensor.dtype, tensor.shape, memory, tensor.#byteOffset);
      return new TensorHandle(value, memory.retain());
    };
    adoptValue = (value, device) => {
      const { dtype, shape } = describe(value);
      const byteLength = bytesOf(dtype, countElements(shape));
      const memory = new Memory({ byteLength, device, address: addressOf(value), value });
      return new Tensor(dtype, shape, new TensorHandle(value, memory), 0);
    };
  }

  private constructor(dtype: DType, shape: readonly number[], handle: TensorHandle, byteOffset: number) {
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.size = countElements(shape);
    this.byteLength = bytesOf(dtype, this.size);
    this.#handle = handle;
    this.#byteOffset = byteOffset;
    watchLeak(this, handle);
  }

  /**
   * A tensor over the memory of `data`, without a copy: runs read and write the array in place.
   *
   * The array must not be transferred to another thread while the tensor lives (using it then is TENSOR_FREED).
   * Arrays of up to 64 bytes lie in V8's moving heap at first; they are moved out of it here, once, and stay the same
   * array for the caller.
   *
   * @throws RuntimeError DTYPE_MISMATCH for an array of another type, SHAPE_MISMATCH for another number of elements
   */
  static from(dtype: DType, shape: readonly number[], data: TensorData): Tensor {
    const info = dtypeInfo(dtype);
    if (!(data instanceof info.array)) {
      throw new RuntimeError(
        "DTYPE_MISMATCH",
        `a ${dtype} tensor needs a ${info.array.name}, not a ${Object.prototype.toString.call(data).slice(8, -1)}`,
      );
    }
    const size = countElements(shape);
    const length = bytesOf(dtype, size) / info.array.BYTES_PER_ELEMENT;
    if (data.length !== length) {
      throw new RuntimeError(
        "SHAPE_MISMATCH",
        `shape ${showShape(shape)} holds ${length} elements, the array has ${data.length}`,
      );
    }
    const buffer = data.buffer; // also moves a small array out of V8's moving heap
    if ("resizable" in buffer && buffer.resizable) {
      throw new RuntimeError(
        "SHAPE_MISMATCH",
        "a resizable ArrayBuffer cannot be shared with the runtime; copy the array",
      );
    }
    const address = size === 0 ? 0n : (koffi.address(data) as Pointer);
    const memory = new Memory({ byteLength: data.byteLength, device: "cpu", address, shared: data });
    return new Tensor(dtype, shape, new TensorHandle(createValue(dtype, shape, memory, 0), memory), 0);
  }

  /**
   * A tensor of zeros in memory outside of JavaScript, gone at once when disposed. On the CPU it is aligned to 64
   * bytes, and up to 2 GiB its pages take no memory until they are written, where the system works that way.
   *
   * @throws RuntimeError DEVICE_UNAVAILABLE, RUNTIME_FAILED when there is not enough memory
   */
  static allocate(dtype: DType, shape: readonly number[], device: DeviceName = "cpu"): Tensor {
    const byteLength = dtypeInfo(dtype) && bytesOf(dtype, countElements(shape));
    const block = device === "cpu" ? Memory.zeros(byteLength) : undefined;
    if (block !== undefined) {
      return new Tensor(dtype, shape, new TensorHandle(createValue(dtype, shape, block, 0), block), 0);
    }
    const tensor = Tensor.#uncleared(dtype, shape, device);
    try {
      tensor.#fillWithZeros();
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  /** A tensor in memory that the runtime allocates, with whatever was there before. */
  static #uncleared(dtype: DType, shape: readonly number[], device: DeviceName): Tensor {
    const { api } = environment();
    const byteLength = bytesOf(dtype, countElements(shape));
    const { onnx } = dtypeInfo(dtype);
    const status = api.CreateTensorAsOrtValue(deviceAllocator(device), dims(shape), shape.length, onnx, out);
    check(api, status, `allocate ${byteLength} bytes for a tensor of shape ${showShape(shape)} on ${device}`);
    const value = outPointer();
    const memory = new Memory({ byteLength, device, address: addressOf(value), value });
    return new Tensor(dtype, shape, new TensorHandle(value, memory), 0);
  }

  /**
   * A tensor over a piece of a mapped file, without a copy: its pages are read when they are first touched, and shared
   * with every process that has mapped the file. It keeps the mapping alive on its own.
   *
   * @throws RuntimeError SHAPE_MISMATCH when the piece is not in the file, TENSOR_FREED for a disposed mapping
   */
  static mapped(dtype: DType, shape: readonly number[], mapping: FileMapping, byteOffset: number): Tensor {
    const memory = mapping.piece(byteOffset, bytesOf(dtype, countElements(shape)));
    return new Tensor(dtype, shape, new TensorHandle(createValue(dtype, shape, memory, 0), memory), 0);
  }

  /** A tensor of shape [] holding one number; integers of int64 may be given as number or bigint. */
  static scalar(dtype: DType, value: number | bigint): Tensor {
    const data = new (dtypeInfo(dtype).array)(1);
    if (data instanceof BigInt64Array) data[0] = BigInt(value);
    else data[0] = Number(value);
    return Tensor.from(dtype, [], data);
  }

  /** Where the memory is. */
  get device(): DeviceName {
    return this.#handle.memory.device;
  }

  /**
   * Where its elements begin, for operators that are told addresses. It holds as long as the tensor, or a view of it, does.
   *
   * @throws RuntimeError TENSOR_FREED after dispose
   */
  get address(): Pointer {
    requireUsable(this.#handle, "a tensor");
    return this.#handle.memory.address + BigInt(this.#byteOffset);
  }

  /** True once disposed. */
  get disposed(): boolean {
    return this.#handle.released;
  }

  /**
   * The elements, live: what a run writes shows here and what is written here a run reads.
   * An array over the runtime's memory that was got before `dispose()` has length 0 afterwards.
   *
   * @throws RuntimeError TENSOR_FREED after dispose, DEVICE_UNAVAILABLE when the memory is on a device
   */
  get data(): TensorData {
    requireUsable(this.#handle, "a tensor");
    if (this.device !== "cpu") {
      throw new RuntimeError(
        "DEVICE_UNAVAILABLE",
        `the memory of this tensor is on ${this.device} and the CPU cannot read it; bind the output to a CPU tensor`,
      );
    }
    if (this.#data?.byteLength !== this.byteLength) {
      const { buffer, byteOffset } = this.#handle.memory.window();
      const { array } = DTYPES[this.dtype];
      this.#data = new array(buffer, byteOffset + this.#byteOffset, this.byteLength / array.BYTES_PER_ELEMENT);
    }
    return this.#data;
  }

  /**
   * Takes the arrays back that `data` gave, of this tensor and of all over the same memory: they get length 0, and the next
   * `data` makes others. Memory that JavaScript sees counts as its own, and with every 64 MiB more of it all of its heap is
   * searched for garbage. Tensors over an array of JavaScript's keep it.
   */
  closeData(): void {
    requireUsable(this.#handle, "a tensor");
    this.#handle.memory.closeWindow();
  }

  /**
   * A tensor over part of this one's memory: elements from `elementOffset` on, in the given shape.
   * It keeps the memory alive on its own, also after this tensor was disposed. Off the CPU it begins with the first
   * element: what stands for memory there need not be an address to which one can add.
   *
   * @throws RuntimeError SHAPE_MISMATCH when it would reach past the end, DEVICE_UNAVAILABLE from elsewhere off the CPU
   */
  view(elementOffset: number, shape: readonly number[]): Tensor {
    requireUsable(this.#handle, "a tensor");
    const size = countElements(shape);
    if (!Number.isInteger(elementOffset) || elementOffset < 0 || elementOffset + size > this.size) {
      throw new RuntimeError(
        "SHAPE_MISMATCH",
        `a view of ${size} elements at offset ${elementOffset} does not fit into a tensor of ${this.size}`,
      );
    }
    if (this.device !== "cpu" && elementOffset > 0) {
      throw new RuntimeError("DEVICE_UNAVAILABLE", `a view on ${this.device} begins with the first element`);
    }
    const byteOffset = this.#byteOffset + elementOffset * DTYPES[this.dtype].bytes;
    if (!Number.isInteger(byteOffset)) {
      throw new RuntimeError("SHAPE_MISMATCH", `element ${elementOffset} of a ${this.dtype} tensor is half a byte`);
    }
    return this.#over(this.dtype, shape, byteOffset);
  }

  /**
   * A tensor over the same bytes as another element type. Like a view, it keeps the memory alive on its own.
   *
   * @throws RuntimeError SHAPE_MISMATCH unless it has exactly as many bytes
   */
  as(dtype: DType, shape: readonly number[]): Tensor {
    requireUsable(this.#handle, "a tensor");
    const byteLength = bytesOf(dtype, countElements(shape));
    if (byteLength !== this.byteLength) {
      const bytes = `${byteLength} bytes, the tensor has ${this.byteLength}`;
      throw new RuntimeError("SHAPE_MISMATCH", `${dtype} ${showShape(shape)} is ${bytes}`);
    }
    return this.#over(dtype, shape, this.#byteOffset);
  }

  #over(dtype: DType, shape: readonly number[], byteOffset: number): Tensor {
    const { memory } = this.#handle;
    const value = createValue(dtype, shape, memory, byteOffset);
    return new Tensor(dtype, shape, new TensorHandle(value, memory.retain()), byteOffset);
  }

  /**
   * Releases the tensor. A second call does nothing.
   *
   * @throws RuntimeError RUN_IN_PROGRESS while an asynchronous run uses it
   */
  dispose(): void {
    const handle = this.#handle;
    if (handle.released) return;
    if (handle.runs > 0) {
      throw new RuntimeError("RUN_IN_PROGRESS", "a tensor cannot be disposed while a run uses it; await the run first");
    }
    unwatchLeak(handle);
    handle.release();
    this.#data = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** A tensor with the same elements on a device. @throws RuntimeError DEVICE_UNAVAILABLE, RUNTIME_FAILED, TENSOR_FREED */
  copyTo(device: DeviceName): Tensor {
    const copy = Tensor.#uncleared(this.dtype, this.shape, device);
    try {
      copy.copyFrom(this);
    } catch (error) {
      copy.dispose();
      throw error;
    }
    return copy;
  }

  /**
   * Makes its elements those of another tensor, which may be on another device.
   *
   * @throws RuntimeError SHAPE_MISMATCH, DTYPE_MISMATCH unless both are alike; TENSOR_FREED
   */
  copyFrom(source: Tensor): void {
    for (const tensor of [this, source]) requireUsable(tensor.#handle, "a tensor");
    const [from, to] = [source, this].map(({ dtype, shape }) => `${dtype} ${showShape(shape)}`);
    if (source.dtype !== this.dtype) throw new RuntimeError("DTYPE_MISMATCH", `${from} cannot be copied to ${to}`);
    if (from !== to) throw new RuntimeError("SHAPE_MISMATCH", `${from} cannot be copied to ${to}`);
    if (this.byteLength === 0) return;
    if (this.device === "cpu" && source.device === "cpu") {
      (this.data as Float32Array).set(source.data as Float32Array);
      return;
    }
    const device = this.device === "cpu" ? source.device : this.device;
    const { api, env } = environment();
    if (copiesItself(device)) {
      const [given, taken] = [source, this].map((tensor) => BigUint64Array.of(tensor.#handle.value));
      check(api, api.CopyTensors(env, given!, taken!, null, 1), `copy from ${source.device} to ${this.device}`);
      return;
    }
    using given = source.as("uint8", [this.byteLength]);
    using taken = this.as("uint8", [this.byteLength]);
    copyThrough(device, given.#handle.value, taken.#handle.value);
  }

  #fillWithZeros(): void {
    if (this.byteLength === 0) return;
    if (this.device === "cpu") {
      new Uint8Array(this.#handle.memory.window().buffer).fill(0);
      return;
    }
    using zeros = Tensor.allocate(this.dtype, this.shape);
    this.copyFrom(zeros);
  }
}

/** Shapes in messages: [2, 3]. */
export function showShape(shape: readonly (number | string)[]): string {
  return `[${shape.join(", ")}]`;
}

function dtypeInfo(dtype: DType): (typeof DTYPES)[DType] {
  const info = Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype] : undefined;
  if (info !== undefined) return info;
  throw new RuntimeError("DTYPE_MISMATCH", `${dtype} is no element type; use one of ${Object.keys(DTYPES).join(", ")}`);
}

function countElements(shape: readonly number[]): number {
  let size = 1;
  for (const dim of shape) {
    if (!Number.isSafeInteger(dim) || dim < 0) {
      throw new RuntimeError("SHAPE_MISMATCH", `shape ${showShape(shape)} must hold non-negative integers`);
    }
    size *= dim;
  }
  if (size > Number.MAX_SAFE_INTEGER / 8) {
    throw new RuntimeError("SHAPE_MISMATCH", `shape ${showShape(shape)} holds more elements than can be addressed`);
  }
  return size;
}

function dims(shape: readonly number[]): BigInt64Array | null {
  return shape.length === 0 ? null : BigInt64Array.from(shape, BigInt);
}

/** Where empty tensors point to: the runtime wants an address even for no bytes. */
const nothing = new Uint8Array(64);

function createValue(dtype: DType, shape: readonly number[], memory: Memory, byteOffset: number): Pointer {
  const { api } = environment();
  const { onnx } = DTYPES[dtype];
  const info = deviceMemoryInfo(memory.device);
  const byteLength = bytesOf(dtype, countElements(shape));
  const address = byteLength === 0 ? nothing : memory.address + BigInt(byteOffset);
  const status = api.CreateTensorWithDataAsOrtValue(info, address, byteLength, dims(shape), shape.length, onnx, out);
  check(api, status, `make a tensor of shape ${showShape(shape)}`);
  return outPointer();
}

function addressOf(value: Pointer): Pointer {
  const { api } = environment();
  check(api, api.GetTensorMutableData(value, out), "give the address of a tensor");
  return outPointer();
}
