/** @file Sessions: a model loaded into ONNX Runtime, its inputs and outputs, and the ways to run it. */
import { setImmediate } from "node:timers/promises";
import koffi from "koffi";
import { type Api, check, messageOf, out, outPointer } from "./api.ts";
import { type Binding, type BindingHandle, createBinding, handleOfBinding } from "./binding.ts";
import { type DeviceName, isOneThreaded } from "./devices.ts";
import { type Environment, environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { unwatchLeak, watchLeak } from "./leaks.ts";
import type { Pointer } from "./library.ts";
import { type LoadedModel, loadModel, loadModelAsync, type SessionOptions } from "./load.ts";
import { type Port, readPorts } from "./signature.ts";
import type { Tensor } from "./tensor.ts";

export interface RunOptions {
  /** Stops an asynchronous run between two operators. A blocking run only looks at it before it starts. */
  signal?: AbortSignal;
}

/** The native side of a session, with everything that must live as long as it. */
export class SessionHandle {
  readonly kind = "Session";
  readonly pointer: Pointer;
  readonly inputs: ReadonlyMap<string, Port>;
  readonly outputs: ReadonlyMap<string, Port>;
  readonly bindings = new Set<BindingHandle>();
  readonly loaded: LoadedModel;
  readonly device: DeviceName;
  /** Asynchronous runs under way. */
  runs = 0;
  released = false;

  constructor(loaded: LoadedModel, device: DeviceName) {
    this.device = device;
    this.loaded = loaded;
    this.pointer = loaded.session;
    try {
      this.inputs = readPorts(this.pointer, "Input");
      this.outputs = readPorts(this.pointer, "Output");
    } catch (error) {
      loaded.release();
      throw error;
    }
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    for (const binding of [...this.bindings]) binding.release();
    this.loaded.release();
  }
}

/** What asynchronous runs use, kept from garbage collection until they end. */
const underway = new Set<Binding>();

/** A model, ready to run. Close it with `dispose()` or `using`; that closes its bindings too. */
export class Session implements Disposable {
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly device: DeviceName;
  /** False when the runtime had to copy the `initializers` into this session instead of sharing them. */
  readonly sharesInitializers: boolean;
  readonly #handle: SessionHandle;
  readonly #environment: Environment;

  private constructor(handle: SessionHandle) {
    this.#handle = handle;
    this.#environment = environment();
    this.inputs = Object.freeze([...handle.inputs.values()]);
    this.outputs = Object.freeze([...handle.outputs.values()]);
    this.device = handle.device;
    this.sharesInitializers = handle.loaded.sharesInitializers;
    watchLeak(this, handle);
  }

  /**
   * Loads a model.
   *
   * @param model the bytes of an ONNX ModelProto; not used after the call
   * @throws RuntimeError RUNTIME_FAILED when the runtime refuses the model, MISSING_BINDING, UNKNOWN_NAME,
   *   DTYPE_MISMATCH and SHAPE_MISMATCH for initializers that do not fit the model, DEVICE_UNAVAILABLE, TENSOR_FREED
   */
  static create(model: Uint8Array, options: SessionOptions = {}): Session {
    return new Session(new SessionHandle(loadModel(model, options), options.device ?? "cpu"));
  }

  /**
   * Loads a model on a worker thread; the event loop stays free. Weights and the container of packed weights may be
   * disposed meanwhile, and several models may be loaded at a time. The session that it resolves to is the caller's to
   * dispose, also when it is not wanted any more by then.
   *
   * @param model as for {@link create}, but not to be changed until the promise settles
   * @throws RuntimeError as {@link create}
   */
  static async createAsync(model: Uint8Array, options: SessionOptions = {}): Promise<Session> {
    return new Session(new SessionHandle(await loadModelAsync(model, options), options.device ?? "cpu"));
  }

  /** A new, empty binding of tensors to this session's inputs and outputs. @throws RuntimeError SESSION_CLOSED */
  bind(): Binding {
    this.#requireOpen();
    return createBinding(this, this.#handle);
  }

  /**
   * Runs the model on the tensors of a binding and blocks until it is done.
   *
   * @throws RuntimeError MISSING_BINDING, SHAPE_MISMATCH, TENSOR_FREED, SESSION_CLOSED, RUN_IN_PROGRESS,
   *   RUN_CANCELLED, RUNTIME_FAILED
   */
  run(binding: Binding, options?: RunOptions): void {
    const handle = this.#start(binding, options?.signal);
    const { api } = this.#environment;
    const status = api.RunWithBinding(this.#handle.pointer, null, handle.pointer);
    if (status !== null) throw runFailed(api, status);
    handle.filled = true;
  }

  /**
   * Runs the model on a worker thread; the event loop stays free. Until it ends, its binding, the tensors bound and
   * the session cannot be disposed, nor can the binding be changed or run; another binding may run meanwhile.
   * Aborting the signal stops the run before its next operator and rejects with RUN_CANCELLED; what it has written
   * by then stays written. A run that was already past its last operator resolves.
   * On a device other than the CPU it blocks as {@link run} does, and lets others have their turn then.
   *
   * @throws RuntimeError as {@link run}
   */
  async runAsync(binding: Binding, options?: RunOptions): Promise<void> {
    if (isOneThreaded(this.device)) {
      this.run(binding, options);
      await setImmediate();
      return;
    }
    const signal = options?.signal;
    const handle = this.#start(binding, signal);
    const { api } = this.#environment;
    let runOptions: Pointer | null = null;
    if (signal !== undefined) {
      check(api, api.CreateRunOptions(out), "create run options");
      runOptions = outPointer();
    }
    let aborted = false;
    const abort = (): void => {
      aborted = true;
      check(api, api.RunOptionsSetTerminate(runOptions), "stop a run");
    };
    handle.hold();
    this.#handle.runs++;
    underway.add(binding);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      const status = await new Promise<Pointer | null>((resolve, reject) => {
        api.RunWithBinding.async(this.#handle.pointer, runOptions, handle.pointer, (error, result) => {
          if (error) reject(new RuntimeError("RUNTIME_FAILED", `the run could not be started: ${error.message}`));
          else resolve(result);
        });
      });
      if (status !== null && aborted) {
        api.ReleaseStatus(status);
        throw new RuntimeError("RUN_CANCELLED", "the run was cancelled");
      }
      if (status !== null) throw runFailed(api, status);
      handle.filled = true;
    } finally {
      signal?.removeEventListener("abort", abort);
      underway.delete(binding);
      this.#handle.runs--;
      handle.unhold();
      if (runOptions !== null) api.ReleaseRunOptions(runOptions);
    }
  }

  /**
   * Runs once with the given inputs and lets the runtime make the outputs, on the CPU. For convenience, not for loops.
   *
   * @param fetches names of the wanted outputs; default: all
   * @returns outputs by name; the caller disposes them
   * @throws RuntimeError as {@link run}, and as `Binding.input`
   */
  call(feeds: Readonly<Record<string, Tensor>>, fetches?: readonly string[]): Record<string, Tensor> {
    using binding = this.bind();
    for (const [name, tensor] of Object.entries(feeds)) binding.input(name, tensor);
    for (const name of fetches ?? this.#handle.outputs.keys()) binding.outputOn(name, "cpu");
    this.run(binding);
    return Object.fromEntries(binding.results());
  }

  /** Stops profiling, writes the file and gives its name. @throws RuntimeError RUNTIME_FAILED without `profile` */
  endProfiling(): string {
    this.#requireOpen();
    const { api, allocator } = this.#environment;
    check(api, api.SessionEndProfiling(this.#handle.pointer, allocator, out), "end profiling");
    const text = outPointer();
    const name = koffi.decode.string(text);
    check(api, api.AllocatorFree(allocator, text), "free a name");
    if (name === "") {
      throw new RuntimeError("RUNTIME_FAILED", "the session does not profile; create it with the option `profile`");
    }
    return name;
  }

  /** Closes the session and its bindings. A second call does nothing. @throws RuntimeError RUN_IN_PROGRESS */
  dispose(): void {
    if (this.#handle.runs > 0) {
      throw new RuntimeError("RUN_IN_PROGRESS", "a session cannot be disposed while it runs; await its runs first");
    }
    for (const handle of [this.#handle, ...this.#handle.bindings]) unwatchLeak(handle);
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #requireOpen(): void {
    if (this.#handle.released) throw new RuntimeError("SESSION_CLOSED", "the session was disposed");
  }

  #start(binding: Binding, signal: AbortSignal | undefined): BindingHandle {
    this.#requireOpen();
    const handle = handleOfBinding(binding);
    if (handle.session !== this.#handle) {
      throw new RuntimeError(
        "SESSION_CLOSED",
        "the binding belongs to another session; make one with this one's bind()",
      );
    }
    if (signal?.aborted) throw new RuntimeError("RUN_CANCELLED", "the run was cancelled before it started");
    handle.prepare();
    return handle;
  }
}

function runFailed(api: Api, status: Pointer): RuntimeError {
  const message = messageOf(api, status);
  const illShaped = /computed output shape|shape verification failed/.test(message);
  return new RuntimeError(illShaped ? "SHAPE_MISMATCH" : "RUNTIME_FAILED", `the run failed: ${message}`);
}
