/** @file Sessions: a model loaded into ONNX Runtime, its inputs and outputs, and the ways to run it. */
import koffi from "koffi";
import { check, out, outPointer } from "./api.ts";
import { type Binding, type BindingHandle, bindingInternals, createBinding } from "./binding.ts";
import { appendDevice, type DeviceName } from "./devices.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { unwatchLeak, watchLeak } from "./leaks.ts";
import type { Pointer } from "./library.ts";
import { type PrepackedHandle, type PrepackedWeights, prepackedHandle } from "./prepacked.ts";
import { type Port, readPorts } from "./signature.ts";
import { borrow, handleOf, requireUsable, type Tensor, type TensorHandle } from "./tensor.ts";

export interface SessionOptions {
  /** Where the model runs. Default: cpu. */
  device?: DeviceName;
  /**
   * Weights by name, for initializers that the model declares as external data at {@link EXTERNAL_LOCATION}. Several
   * sessions may share the same tensors; nothing is copied and the memory stays until the last of them is closed.
   */
  initializers?: ReadonlyMap<string, Tensor>;
  /** Where prepacked weights are kept, so that sessions with the same weights keep them once. */
  prepacked?: PrepackedWeights;
  /** Whether kernels may rearrange weights for speed, at the price of a second copy of them. Default: true. */
  prepacking?: boolean;
  /** How far the runtime rewrites the graph. Default: all. */
  optimization?: "none" | "basic" | "extended" | "all";
  /** Prefix of the file that profiling writes; without it there is no profiling. */
  profile?: string;
  /** Session config entries of the runtime, such as `session.set_denormal_as_zero`. */
  config?: Readonly<Record<string, string>>;
}

export interface RunOptions {
  /** Stops an asynchronous run between two operators. A blocking run only looks at it before it starts. */
  signal?: AbortSignal;
}

/** The `location` a model gives for initializers that come from outside: exists everywhere and holds nothing. */
export const EXTERNAL_LOCATION = ".";

const OPTIMIZATION = { none: 0, basic: 1, extended: 2, all: 99 } as const;

/** The native side of a session, with everything that must live as long as it. */
export class SessionHandle {
  readonly kind = "Session";
  readonly pointer: Pointer;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly bindings = new Set<BindingHandle>();
  /** The runtime keeps the addresses of these values, not the values. */
  readonly #weights: readonly TensorHandle[];
  readonly #prepacked: PrepackedHandle | undefined;
  runs = 0;
  released = false;

  constructor(pointer: Pointer, weights: readonly TensorHandle[], prepacked: PrepackedHandle | undefined) {
    this.pointer = pointer;
    this.#weights = weights;
    this.#prepacked = prepacked;
    this.inputs = readPorts(pointer, "Input");
    this.outputs = readPorts(pointer, "Output");
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    for (const binding of [...this.bindings]) binding.release();
    environment().api.ReleaseSession(this.pointer);
    for (const weight of this.#weights) weight.release();
    this.#prepacked?.drop();
  }
}

/** What asynchronous runs use, kept from garbage collection until they end. */
const running = new Set<Binding>();

/** A model, ready to run. */
export class Session implements Disposable {
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly #handle: SessionHandle;

  private constructor(handle: SessionHandle) {
    this.#handle = handle;
    this.inputs = handle.inputs;
    this.outputs = handle.outputs;
    watchLeak(this, handle);
  }

  /**
   * Loads a model.
   *
   * @param model the bytes of an ONNX ModelProto
   * @throws RuntimeError RUNTIME_FAILED when the runtime refuses the model, DEVICE_UNAVAILABLE, TENSOR_FREED
   */
  static create(model: Uint8Array, options: SessionOptions = {}): Session {
    const { api, env } = environment();
    check(api, api.CreateSessionOptions(out), "create session options");
    const native = outPointer();
    const weights: TensorHandle[] = [];
    const container = options.prepacked === undefined ? undefined : prepackedHandle(options.prepacked).retain();
    try {
      check(api, api.DisablePerSessionThreads(native), "share its threads");
      const level = OPTIMIZATION[options.optimization ?? "all"];
      check(api, api.SetSessionGraphOptimizationLevel(native, level), "set the optimization level");
      const config = { ...options.config };
      if (options.prepacking === false) config["session.disable_prepacking"] = "1";
      for (const [key, value] of Object.entries(config)) {
        check(api, api.AddSessionConfigEntry(native, key, value), `set ${key}`);
      }
      if (options.profile !== undefined) check(api, api.EnableProfiling(native, options.profile), "set up profiling");
      appendDevice(native, options.device ?? "cpu");
      for (const [name, tensor] of options.initializers ?? []) {
        const handle = handleOf(tensor);
        requireUsable(handle, `the initializer ${name}`);
        const weight = borrow(tensor);
        weights.push(weight);
        check(api, api.AddInitializer(native, name, weight.value), `use the initializer ${name}`);
      }
      const status =
        container === undefined
          ? api.CreateSessionFromArray(env, model, model.byteLength, native, out)
          : api.CreateSessionFromArrayWithPrepackedWeightsContainer(
              env,
              model,
              model.byteLength,
              native,
              container.pointer,
              out,
            );
      check(api, status, "load the model");
      return new Session(new SessionHandle(outPointer(), weights, container));
    } catch (error) {
      for (const weight of weights) weight.release();
      container?.drop();
      throw error;
    } finally {
      api.ReleaseSessionOptions(native);
    }
  }

  /** A new, empty binding of tensors to this session's inputs and outputs. */
  bind(): Binding {
    this.#requireOpen();
    return createBinding(this.#handle);
  }

  /**
   * Runs the model on the tensors of a binding and blocks until it is done.
   *
   * @throws RuntimeError MISSING_BINDING, TENSOR_FREED, SESSION_CLOSED, RUN_IN_PROGRESS, RUN_CANCELLED, RUNTIME_FAILED
   */
  run(binding: Binding, options?: RunOptions): void {
    const inner = this.#start(binding, options?.signal);
    const { api } = environment();
    check(api, api.RunWithBinding(this.#handle.pointer, null, inner.handle.pointer), "run the model");
  }

  /**
   * Runs the model on a worker thread; the event loop stays free. Until it ends the binding, its tensors and the
   * session can neither be disposed nor run again with the same binding; another binding may run meanwhile.
   * Aborting the signal stops the run before its next operator and rejects with RUN_CANCELLED; a run that was
   * already past its last operator resolves.
   *
   * @throws RuntimeError as {@link run}
   */
  async runAsync(binding: Binding, options?: RunOptions): Promise<void> {
    const signal = options?.signal;
    const inner = this.#start(binding, signal);
    const { api } = environment();
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
    inner.hold();
    this.#handle.runs++;
    running.add(binding);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      const status = await new Promise<Pointer | null>((resolve, reject) => {
        api.RunWithBinding.async(this.#handle.pointer, runOptions, inner.handle.pointer, (error, result) => {
          if (error) reject(error);
          else resolve(result);
        });
      });
      check(
        api,
        status,
        aborted ? "finish a cancelled run" : "run the model",
        aborted ? "RUN_CANCELLED" : "RUNTIME_FAILED",
      );
    } finally {
      signal?.removeEventListener("abort", abort);
      running.delete(binding);
      this.#handle.runs--;
      inner.unhold();
      if (runOptions !== null) api.ReleaseRunOptions(runOptions);
    }
  }

  /**
   * Runs once with the given inputs and lets the runtime make the outputs, on the CPU. For convenience, not for loops.
   *
   * @param fetches names of the wanted outputs; default: all
   * @returns outputs by name; the caller disposes them
   */
  call(feeds: Readonly<Record<string, Tensor>>, fetches?: readonly string[]): Record<string, Tensor> {
    using binding = this.bind();
    for (const [name, tensor] of Object.entries(feeds)) binding.input(name, tensor);
    for (const name of fetches ?? this.outputs.map((port) => port.name)) binding.outputOn(name, "cpu");
    this.run(binding);
    return Object.fromEntries(binding.results());
  }

  /** Stops profiling, writes the file and gives its name. @throws RuntimeError RUNTIME_FAILED without `profile` */
  endProfiling(): string {
    this.#requireOpen();
    const { api, allocator } = environment();
    check(api, api.SessionEndProfiling(this.#handle.pointer, allocator, out), "end profiling");
    const text = outPointer();
    const name = koffi.decode.string(text);
    check(api, api.AllocatorFree(allocator, text), "free a name");
    return name;
  }

  /** Closes the session and its bindings. A second call does nothing. @throws RuntimeError RUN_IN_PROGRESS */
  dispose(): void {
    if (this.#handle.released) return;
    if (this.#handle.runs > 0) {
      throw new RuntimeError("RUN_IN_PROGRESS", "a session cannot be disposed while it runs; await its runs first");
    }
    unwatchLeak(this.#handle);
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #requireOpen(): void {
    if (this.#handle.released) throw new RuntimeError("SESSION_CLOSED", "the session was disposed");
  }

  #start(binding: Binding, signal: AbortSignal | undefined): ReturnType<typeof bindingInternals> {
    this.#requireOpen();
    const inner = bindingInternals(binding);
    if (inner.handle.session !== this.#handle) {
      throw new RuntimeError(
        "SESSION_CLOSED",
        "the binding belongs to another session; make one with bind() of this one",
      );
    }
    inner.ready();
    if (signal?.aborted) throw new RuntimeError("RUN_CANCELLED", "the run was cancelled before it started");
    return inner;
  }
}
