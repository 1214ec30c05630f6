/** @file I/O binding: which tensors a run reads and writes, settled once, so that a run is a single native call. */
import koffi from "koffi";
import { check, out, outPointer } from "./api.ts";
import { type DeviceName, deviceMemoryInfo } from "./devices.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { unwatchLeak, watchLeak } from "./leaks.ts";
import type { Pointer } from "./library.ts";
import type { SessionHandle } from "./session.ts";
import { type Port, requireFit } from "./signature.ts";
import { adoptValue, epoch, handleOf, requireUsable, type Tensor, type TensorHandle } from "./tensor.ts";

/** The native side of a binding. Its session releases it at the latest when it closes. */
export class BindingHandle {
  readonly kind = "Binding";
  readonly session: SessionHandle;
  readonly pointer: Pointer;
  running = false;
  released = false;

  constructor(session: SessionHandle, pointer: Pointer) {
    this.session = session;
    this.pointer = pointer;
    session.bindings.add(this);
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    this.session.bindings.delete(this);
    environment().api.ReleaseIoBinding(this.pointer);
  }
}

/** What a session needs of a binding. */
export let bindingInternals: (binding: Binding) => BindingInternals;
export let createBinding: (session: SessionHandle) => Binding;

interface BindingInternals {
  readonly handle: BindingHandle;
  /** Throws unless a run may start. */
  ready(): void;
  /** Marks the binding and its tensors as in use, or not any more. */
  hold(): void;
  unhold(): void;
}

/**
 * The tensors of a run. Made by `session.bind()`; bind every input and at least one output, run as often as wanted,
 * rebind what changes. It keeps its tensors and its session from being garbage collected.
 */
export class Binding implements Disposable {
  readonly #handle: BindingHandle;
  readonly #inputs = new Map<string, Tensor>();
  /** A tensor the output is written to, or the device on which the runtime makes one in each run. */
  readonly #outputs = new Map<string, Tensor | DeviceName>();
  /** Tensors over JavaScript memory: the only ones whose memory may vanish without a dispose. */
  #shared: TensorHandle[] = [];
  /** Value of `epoch.freed` at which all tensors were last seen usable; -1 after a change. */
  #checkedAt = -1;

  static {
    createBinding = (session) => new Binding(session);
    bindingInternals = (binding) => ({
      handle: binding.#handle,
      ready: () => binding.#ready(),
      hold: () => binding.#hold(1),
      unhold: () => binding.#hold(-1),
    });
  }

  private constructor(session: SessionHandle) {
    const { api } = environment();
    check(api, api.CreateIoBinding(session.pointer, out), "create a binding");
    this.#handle = new BindingHandle(session, outPointer());
    watchLeak(this, this.#handle);
  }

  /**
   * Reads an input from a tensor; binding a name again replaces its tensor.
   *
   * @throws RuntimeError UNKNOWN_NAME, DTYPE_MISMATCH, SHAPE_MISMATCH, TENSOR_FREED, SESSION_CLOSED, RUN_IN_PROGRESS
   */
  input(name: string, tensor: Tensor): this {
    this.#requireIdle();
    const port = findPort(this.#handle.session.inputs, name, "input");
    requireFit(port, tensor);
    const handle = handleOf(tensor);
    requireUsable(handle, `the tensor for ${name}`);
    const { api } = environment();
    check(api, api.BindInput(this.#handle.pointer, name, handle.value), `bind the input ${name}`);
    this.#inputs.set(name, tensor);
    this.#checkedAt = -1;
    return this;
  }

  /** Writes an output into a tensor, in place. The same tensor may be an input too where the model allows it. Errors as {@link input}. */
  output(name: string, tensor: Tensor): this {
    this.#requireIdle();
    const port = findPort(this.#handle.session.outputs, name, "output");
    requireFit(port, tensor);
    const handle = handleOf(tensor);
    requireUsable(handle, `the tensor for ${name}`);
    const { api } = environment();
    check(api, api.BindOutput(this.#handle.pointer, name, handle.value), `bind the output ${name}`);
    this.#outputs.set(name, tensor);
    this.#checkedAt = -1;
    return this;
  }

  /** Lets the runtime make the output in each run, on a device; get it with {@link results}. Errors as {@link input}. */
  outputOn(name: string, device: DeviceName): this {
    this.#requireIdle();
    findPort(this.#handle.session.outputs, name, "output");
    const { api } = environment();
    const info = deviceMemoryInfo(device);
    check(api, api.BindOutputToDevice(this.#handle.pointer, name, info), `bind the output ${name} to ${device}`);
    this.#outputs.set(name, device);
    this.#checkedAt = -1;
    return this;
  }

  /**
   * The outputs of the last run by name: the bound tensors themselves, and for {@link outputOn} a new tensor at each
   * call, which the caller disposes.
   */
  results(): Map<string, Tensor> {
    this.#requireIdle();
    const results = new Map<string, Tensor>();
    const made = [...this.#outputs.values()].some((target) => typeof target === "string");
    const values = made ? boundOutputs(this.#handle.pointer) : [];
    // The runtime lists outputs in the order in which they were first bound, and so does the map.
    [...this.#outputs].forEach(([name, target], index) => {
      const value = values[index];
      if (typeof target !== "string") {
        if (value !== undefined) environment().api.ReleaseValue(value);
        results.set(name, target);
      } else if (value !== undefined) {
        results.set(name, adoptValue(value, target));
      }
    });
    return results;
  }

  /** Forgets all inputs and outputs. @throws RuntimeError RUN_IN_PROGRESS */
  clear(): this {
    this.#requireIdle();
    const { api } = environment();
    api.ClearBoundInputs(this.#handle.pointer);
    api.ClearBoundOutputs(this.#handle.pointer);
    this.#inputs.clear();
    this.#outputs.clear();
    this.#checkedAt = -1;
    return this;
  }

  /** Releases the binding, not its tensors. A second call does nothing. @throws RuntimeError RUN_IN_PROGRESS */
  dispose(): void {
    if (this.#handle.released) return;
    if (this.#handle.running) throw busy();
    unwatchLeak(this.#handle);
    this.#handle.release();
    this.#inputs.clear();
    this.#outputs.clear();
    this.#shared = [];
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #requireIdle(): void {
    const handle = this.#handle;
    if (handle.session.released) throw new RuntimeError("SESSION_CLOSED", "the session of this binding was disposed");
    if (handle.released)
      throw new RuntimeError("SESSION_CLOSED", "the binding was disposed; make a new one with bind()");
    if (handle.running) throw busy();
  }

  #ready(): void {
    this.#requireIdle();
    if (this.#checkedAt !== epoch.freed) this.#checkTensors();
    for (const handle of this.#shared) requireUsable(handle, "a bound tensor");
  }

  /** The checks that only a change of the binding or a disposed tensor makes necessary again. */
  #checkTensors(): void {
    const missing = this.#handle.session.inputs.filter((port) => !this.#inputs.has(port.name)).map((port) => port.name);
    if (missing.length > 0) {
      throw new RuntimeError("MISSING_BINDING", `bind every input before a run; missing: ${missing.join(", ")}`);
    }
    if (this.#outputs.size === 0) throw new RuntimeError("MISSING_BINDING", "bind at least one output before a run");
    this.#shared = [];
    for (const [name, tensor] of [...this.#inputs, ...this.#outputs]) {
      if (typeof tensor === "string") continue;
      const handle = handleOf(tensor);
      requireUsable(handle, `the tensor bound to ${name}`);
      if (handle.memory.isShared) this.#shared.push(handle);
    }
    this.#checkedAt = epoch.freed;
  }

  #hold(change: 1 | -1): void {
    this.#handle.running = change > 0;
    for (const tensor of this.#inputs.values()) handleOf(tensor).runs += change;
    for (const target of this.#outputs.values()) if (typeof target !== "string") handleOf(target).runs += change;
  }
}

function busy(): RuntimeError {
  return new RuntimeError(
    "RUN_IN_PROGRESS",
    "the binding is in use by a run; await that run first, or use another binding",
  );
}

function findPort(ports: readonly Port[], name: string, what: "input" | "output"): Port {
  const port = ports.find((candidate) => candidate.name === name);
  if (port !== undefined) return port;
  const names = ports.map((candidate) => candidate.name);
  throw new RuntimeError("UNKNOWN_NAME", `the model has no ${what} ${name}; it has ${names.join(", ") || "none"}`);
}

/** The OrtValues of all bound outputs, in binding order; the caller owns them. */
function boundOutputs(binding: Pointer): Pointer[] {
  const { api, allocator } = environment();
  const count = new BigUint64Array(8);
  check(api, api.GetBoundOutputValues(binding, allocator, out, count), "give the outputs of a run");
  const length = Number(count[0]!);
  if (length === 0) return [];
  const list = outPointer();
  const values = koffi.decode(list, koffi.array("void *", length)) as Pointer[];
  check(api, api.AllocatorFree(allocator, list), "free a list");
  return values;
}
