/** @file I/O binding: which tensors a run reads and writes, settled once, so that a run is a single native call. */
import koffi from "koffi";
import { check, out, outPointer } from "./api.ts";
import { type DeviceName, deviceMemoryInfo } from "./devices.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { unwatchLeak, watchLeak } from "./leaks.ts";
import type { Pointer } from "./library.ts";
import type { Session, SessionHandle } from "./session.ts";
import { findPort, type Port, requireConsistent, requireFit, showNames } from "./signature.ts";
import { adoptValue, handleOf, type Tensor } from "./tensor.ts";
import { epoch, requireUsable, type TensorHandle } from "./tensor-handle.ts";

/** The native side of a binding. Its session releases it at the latest when it closes. */
export class BindingHandle {
  readonly kind = "Binding";
  readonly session: SessionHandle;
  readonly pointer: Pointer;
  readonly inputs = new Map<string, Tensor>();
  /** A tensor the output is written to, or the device on which the runtime makes one in each run. */
  readonly outputs = new Map<string, Tensor | DeviceName>();
  running = false;
  released = false;
  /** Whether the last run has succeeded, so that the outputs which the runtime makes are there. */
  filled = false;
  /** Whether a run may have left values in those outputs. */
  #stale = false;
  /** Those outputs, with the memory they are made in. */
  #made: [name: string, memoryInfo: Pointer][] = [];
  /** Every bound tensor, as of the last check. */
  #handles: TensorHandle[] = [];
  /** Those over JavaScript memory: the only ones whose memory may vanish without a dispose. */
  #shared: TensorHandle[] = [];
  /** Inputs on the CPU of a session that runs elsewhere. */
  #copied: [name: string, value: Pointer][] = [];
  #changed = true;
  /** Value of `epoch.freed` at which all tensors were last seen usable. */
  #checkedAt = -1;

  constructor(session: SessionHandle) {
    const { api } = environment();
    check(api, api.CreateIoBinding(session.pointer, out), "create a binding");
    this.pointer = outPointer();
    this.session = session;
    session.bindings.add(this);
  }

  changed(): void {
    this.#changed = true;
  }

  requireIdle(): void {
    if (this.session.released) throw new RuntimeError("SESSION_CLOSED", "the session of this binding was disposed");
    if (this.released) throw new RuntimeError("SESSION_CLOSED", "the binding was disposed; make a new one with bind()");
    if (this.running) throw inUse();
  }

  /** Makes ready for a run, or throws. Costs next to nothing while nothing has changed. */
  prepare(): void {
    this.requireIdle();
    if (this.#changed) this.#checkChange();
    if (this.#checkedAt !== epoch.freed) {
      for (const handle of this.#handles) requireUsable(handle, "a bound tensor");
      this.#checkedAt = epoch.freed;
    }
    for (const handle of this.#shared) requireUsable(handle, "a bound tensor");
    // The runtime copies these when they are bound, not when it runs, and would miss what was written since.
    for (const [name, value] of this.#copied) this.bindInput(name, value);
    if (this.#copied.length > 0) {
      const { api } = environment();
      check(api, api.SynchronizeBoundInputs(this.pointer), "copy the inputs to the device");
    }
    if (this.#made.length === 0) return;
    // Else the runtime would write into what the last run has made, whatever its size.
    if (this.#stale) for (const [name, info] of this.#made) this.bindMade(name, info);
    this.filled = false;
    this.#stale = true;
  }

  bindInput(name: string, value: Pointer): void {
    const { api } = environment();
    check(api, api.BindInput(this.pointer, name, value), `bind the input ${name}`);
  }

  bindMade(name: string, memoryInfo: Pointer): void {
    const { api } = environment();
    check(api, api.BindOutputToDevice(this.pointer, name, memoryInfo), `bind the output ${name}`);
    this.filled = false;
  }

  #checkChange(): void {
    const missing = [...this.session.inputs.keys()].filter((name) => !this.inputs.has(name));
    if (missing.length > 0) {
      throw new RuntimeError("MISSING_BINDING", `bind every input before a run; missing: ${showNames(missing)}`);
    }
    if (this.outputs.size === 0) throw new RuntimeError("MISSING_BINDING", "bind at least one output before a run");
    requireConsistent(this.session.inputs.values(), (name) => this.inputs.get(name)!);
    this.#handles = [];
    this.#made = [];
    this.#copied = [];
    for (const [name, tensor] of this.inputs) {
      const handle = handleOf(tensor);
      this.#handles.push(handle);
      if (this.session.device !== "cpu" && tensor.device === "cpu") this.#copied.push([name, handle.value]);
    }
    for (const [name, target] of this.outputs) {
      if (typeof target === "string") this.#made.push([name, deviceMemoryInfo(target)]);
      else this.#handles.push(handleOf(target));
    }
    this.#shared = this.#handles.filter((handle) => handle.memory.isShared);
    this.#checkedAt = -1;
    this.#changed = false;
  }

  /** Marks the binding and its tensors as in use by an asynchronous run. */
  hold(): void {
    this.running = true;
    for (const handle of this.#handles) handle.runs++;
  }

  unhold(): void {
    this.running = false;
    for (const handle of this.#handles) handle.runs--;
  }

  clear(): void {
    this.inputs.clear();
    this.outputs.clear();
    this.#handles = [];
    this.#made = [];
    this.#copied = [];
    this.#shared = [];
    this.filled = false;
    this.#changed = true;
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    this.session.bindings.delete(this);
    environment().api.ReleaseIoBinding(this.pointer);
    this.clear();
  }
}

/** For sessions only. */
export let createBinding: (session: Session, handle: SessionHandle) => Binding;
export let handleOfBinding: (binding: Binding) => BindingHandle;

/**
 * The tensors of a run. Made by `session.bind()`; bind every input and at least one output, run as often as wanted,
 * rebind what changes. It keeps its tensors and its session from being garbage collected.
 */
export class Binding implements Disposable {
  readonly session: Session;
  readonly #handle: BindingHandle;

  static {
    createBinding = (session, handle) => new Binding(session, handle);
    handleOfBinding = (binding) => binding.#handle;
  }

  private constructor(session: Session, handle: SessionHandle) {
    this.session = session;
    this.#handle = new BindingHandle(handle);
    watchLeak(this, this.#handle);
  }

  /**
   * Reads an input from a tensor; binding a name again replaces its tensor.
   *
   * @throws RuntimeError UNKNOWN_NAME, DTYPE_MISMATCH, SHAPE_MISMATCH, TENSOR_FREED, SESSION_CLOSED, RUN_IN_PROGRESS
   */
  input(name: string, tensor: Tensor): this {
    const handle = this.#handle;
    handle.requireIdle();
    const value = bindable(findPort(handle.session.inputs, name, "input"), tensor);
    handle.bindInput(name, value);
    handle.inputs.set(name, tensor);
    handle.changed();
    return this;
  }

  /**
   * Writes an output into a tensor, in place. The tensor may be an input too where the model's operators allow that.
   *
   * @throws RuntimeError as {@link input}; a symbolic dimension of the wrong size shows only in the run
   */
  output(name: string, tensor: Tensor): this {
    const handle = this.#handle;
    handle.requireIdle();
    const value = bindable(findPort(handle.session.outputs, name, "output"), tensor);
    const { api } = environment();
    check(api, api.BindOutput(handle.pointer, name, value), `bind the output ${name}`);
    handle.outputs.set(name, tensor);
    handle.changed();
    return this;
  }

  /**
   * Lets the runtime make the output in each run, on a device; get it with {@link results}.
   *
   * @throws RuntimeError UNKNOWN_NAME, DEVICE_UNAVAILABLE, SESSION_CLOSED, RUN_IN_PROGRESS
   */
  outputOn(name: string, device: DeviceName): this {
    const handle = this.#handle;
    handle.requireIdle();
    findPort(handle.session.outputs, name, "output");
    handle.bindMade(name, deviceMemoryInfo(device));
    handle.outputs.set(name, device);
    handle.changed();
    return this;
  }

  /**
   * The outputs of the last run by name: the bound tensors themselves, and for {@link outputOn} a new tensor at each
   * call, which the caller disposes.
   *
   * @throws RuntimeError SESSION_CLOSED, RUN_IN_PROGRESS, MISSING_BINDING before a run has made them
   */
  results(): Map<string, Tensor> {
    this.#handle.requireIdle();
    const { outputs, pointer, filled } = this.#handle;
    const results = new Map<string, Tensor>();
    const made = [...outputs.values()].some((target) => typeof target === "string");
    if (made && !filled) throw new RuntimeError("MISSING_BINDING", "run the binding first; it has no outputs yet");
    const values = made ? boundOutputs(pointer) : [];
    // The runtime lists outputs in the order in which they were first bound, and so does the map.
    [...outputs].forEach(([name, target], index) => {
      const value = values[index];
      if (typeof target === "string") results.set(name, adoptValue(value!, target));
      else {
        if (value !== undefined) environment().api.ReleaseValue(value);
        results.set(name, target);
      }
    });
    return results;
  }

  /** Forgets all inputs and outputs. @throws RuntimeError SESSION_CLOSED, RUN_IN_PROGRESS */
  clear(): this {
    const handle = this.#handle;
    handle.requireIdle();
    const { api } = environment();
    api.ClearBoundInputs(handle.pointer);
    api.ClearBoundOutputs(handle.pointer);
    handle.clear();
    return this;
  }

  /** Releases the binding, not its tensors. A second call does nothing. @throws RuntimeError RUN_IN_PROGRESS */
  dispose(): void {
    if (this.#handle.running) throw inUse();
    unwatchLeak(this.#handle);
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function inUse(): RuntimeError {
  return new RuntimeError(
    "RUN_IN_PROGRESS",
    "the binding is in use by a run; await that run first, or use another binding",
  );
}

/** The OrtValue of a tensor that fits a port. */
function bindable(port: Port, tensor: Tensor): Pointer {
  const handle = handleOf(tensor);
  requireUsable(handle, `the tensor for ${port.name}`);
  requireFit(port, tensor);
  return handle.value;
}

/** The OrtValues of all bound outputs, in binding order, owned by the caller. */
function boundOutputs(binding: Pointer): Pointer[] {
  const { api, allocator } = environment();
  const count = new BigUint64Array(1);
  check(api, api.GetBoundOutputValues(binding, allocator, out, count), "give the outputs of a run");
  const length = Number(count[0]!);
  if (length === 0) return [];
  const list = outPointer();
  const values = koffi.decode(list, koffi.array("void *", length)) as Pointer[];
  check(api, api.AllocatorFree(allocator, list), "free a list");
  return values;
}
