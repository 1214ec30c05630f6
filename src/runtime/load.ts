/** @file Loads a model into a native session, with its weights shared from outside. */
import { reasonOf } from "../base/index.ts";
import { type Api, check, out, outPointer, type StatusCall } from "./api.ts";
import { appendDevice, type DeviceName, isOneThreaded, unwantedOptimizers } from "./devices.ts";
import { DTYPES, dtypeOfOnnx } from "./dtypes.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { type ExternalInitializer, externalInitializers } from "./initializers.ts";
import type { Pointer } from "./library.ts";
import { type PrepackedHandle, type PrepackedWeights, prepackedHandle } from "./prepacked.ts";
import { showNames } from "./signature.ts";
import { borrow, handleOf, showShape, type Tensor } from "./tensor.ts";
import { requireUsable, type TensorHandle } from "./tensor-handle.ts";
import { type DeviceWeight, deviceWeight } from "./weights.ts";

export interface SessionOptions {
  /** Where the model runs. Default: cpu. */
  device?: DeviceName;
  /**
   * Weights by name, for the initializers that the model declares as external data at {@link EXTERNAL_LOCATION}.
   * It may hold more than the model declares: all graphs of one backbone are given the same map.
   * Several sessions may share the same tensors; nothing is copied, and the memory stays until the last of them is
   * closed. (A model in which the runtime can compute something from weights alone, such as a transposed weight,
   * needs them at load time; that session then gets a copy, see `Session.sharesInitializers`.)
   */
  initializers?: ReadonlyMap<string, Tensor>;
  /** Where prepacked weights are kept, so that sessions with the same weights keep them once. */
  prepacked?: PrepackedWeights;
  /** Whether kernels may rearrange weights for speed, at the price of a second copy of them. Default: true. */
  prepacking?: boolean;
  /** How far the runtime rewrites the graph. Default: all. */
  optimization?: "none" | "basic" | "extended" | "all";
  /**
   * Whether the memory plan of each combination of input shapes is kept for the next run. Default: true; not worth its
   * memory where shapes hardly ever come again.
   */
  memoryPattern?: boolean;
  /** Prefix of the file that profiling writes; without it there is no profiling. */
  profile?: string;
  /**
   * Whether the session takes memory for what is between its inputs and outputs from one arena that all such sessions
   * share, and not from one of its own, which keeps what the largest run needed. Default: false.
   */
  sharedArena?: boolean;
  /** Session config entries of the runtime, such as `session.set_denormal_as_zero`. */
  config?: Readonly<Record<string, string>>;
}

/**
 * The `location` a model gives for initializers that come from outside. The runtime insists that it exists, and reads
 * it only to compute something from weights alone; a directory exists everywhere and cannot be mistaken for data.
 */
export const EXTERNAL_LOCATION = ".";

const OPTIMIZATION = { none: 0, basic: 1, extended: 2, all: 99 } as const;

/** A native session and what it borrows. */
export interface LoadedModel {
  readonly session: Pointer;
  readonly sharesInitializers: boolean;
  release(): void;
}

/** The one native call of loading that takes long. */
interface SlowCall {
  readonly call: StatusCall;
  readonly args: Parameters<StatusCall>;
}

/** Loading, which stops at every slow call for whoever drives it to make the call and to pass on its status. */
type Loading<T> = Generator<SlowCall, T, Pointer | null>;

/** Blocks until the model is loaded. @throws RuntimeError see `Session.create` */
export function loadModel(model: Uint8Array, options: SessionOptions): LoadedModel {
  const loading = load(model, options);
  for (let status: Pointer | null = null; ; ) {
    const { done, value } = loading.next(status);
    if (done) return value;
    status = value.call(...value.args);
  }
}

/** Makes the slow calls on a worker thread. What is borrowed stays as it is until the end, whatever is disposed meanwhile. */
export async function loadModelAsync(model: Uint8Array, options: SessionOptions): Promise<LoadedModel> {
  if (isOneThreaded(options.device ?? "cpu")) return loadModel(model, options);
  void model.buffer; // see `out`
  const loading = load(model, options);
  for (let step = loading.next(null); ; ) {
    if (step.done) return step.value;
    const { call, args } = step.value;
    let status: Pointer | null;
    try {
      status = await new Promise<Pointer | null>((resolve, reject) => {
        call.async(...args, (error, result) => (error ? reject(error) : resolve(result)));
      });
    } catch (cause) {
      const message = `the runtime could not begin to load the model: ${reasonOf(cause)}`;
      step = loading.throw(new RuntimeError("RUNTIME_FAILED", message, { cause }));
      continue;
    }
    step = loading.next(status);
  }
}

function* load(model: Uint8Array, options: SessionOptions): Loading<LoadedModel> {
  const wanted = externalInitializers(model);
  let given = options.initializers ?? new Map<string, Tensor>();
  if (wanted !== undefined) {
    requireWeights(wanted, given);
    given = new Map([...wanted.keys()].map((name) => [name, given.get(name)!]));
  }
  const prepacked = options.prepacked === undefined ? undefined : prepackedHandle(options.prepacked).retain();
  const device = options.device ?? "cpu";
  const weights: Weight[] = [];
  const releaseBorrowed = (): void => {
    for (const { own, there, copy } of weights) {
      own.release();
      if (there !== own) there.release();
      copy?.release();
    }
    prepacked?.drop();
  };
  try {
    for (const tensor of given.values()) {
      const own = borrow(tensor);
      const weight: Weight = { own, there: own };
      weights.push(weight);
      if (tensor.device === device) continue;
      weight.copy = deviceWeight(tensor, device);
      weight.there = borrow(weight.copy.tensor);
    }
    const names = [...given.keys()];
    const { session, shared } = yield* createShared(model, options, names, weights, prepacked);
    const { api } = environment();
    return {
      session,
      sharesInitializers: shared,
      release: () => {
        api.ReleaseSession(session);
        releaseBorrowed();
      },
    };
  } catch (error) {
    releaseBorrowed();
    throw error;
  }
}

/** A weight as it was given and as the session takes it, which differ where it runs elsewhere. */
interface Weight {
  readonly own: TensorHandle;
  there: TensorHandle;
  copy?: DeviceWeight;
}

/** Shares the weights if the runtime can, else lets it copy them. */
function* createShared(
  model: Uint8Array,
  options: SessionOptions,
  names: readonly string[],
  weights: readonly Weight[],
  prepacked: PrepackedHandle | undefined,
): Loading<{ session: Pointer; shared: boolean }> {
  const add = (api: Api, native: Pointer): void =>
    names.forEach((name, index) => {
      check(api, api.AddInitializer(native, name, weights[index]!.there.value), `use the initializer ${name}`);
    });
  try {
    return { session: yield* create(model, options, prepacked, add), shared: true };
  } catch (error) {
    if (names.length === 0 || !(error instanceof RuntimeError) || !readsPlaceholder(error.message)) throw error;
  }
  const inject = (api: Api, native: Pointer): void => {
    const values = BigUint64Array.from(weights, ({ own }) => own.value);
    check(api, api.AddExternalInitializers(native, names, values, names.length), "copy the initializers");
  };
  return { session: yield* create(model, options, prepacked, inject), shared: false };
}

/** Whether loading failed because the runtime went to the placeholder for the data of an initializer. */
function readsPlaceholder(message: string): boolean {
  return /External data path|External initializer|cannot get file size|external data/i.test(message);
}

function* create(
  model: Uint8Array,
  options: SessionOptions,
  prepacked: PrepackedHandle | undefined,
  addWeights: (api: Api, native: Pointer) => void,
): Loading<Pointer> {
  const { api, env, operators } = environment();
  check(api, api.CreateSessionOptions(out), "create session options");
  const native = outPointer();
  try {
    check(api, api.DisablePerSessionThreads(native), "share its threads");
    const level = OPTIMIZATION[options.optimization ?? "all"];
    check(api, api.SetSessionGraphOptimizationLevel(native, level), "set the optimization level");
    const config: Record<string, string> = { ...options.config };
    const unwanted = unwantedOptimizers(options.device ?? "cpu");
    if (unwanted !== "") config["optimization.disable_specified_optimizers"] = unwanted;
    if (options.prepacking === false) config["session.disable_prepacking"] = "1";
    if (options.sharedArena) config["session.use_env_allocators"] = "1";
    for (const [key, value] of Object.entries(config)) {
      check(api, api.AddSessionConfigEntry(native, key, value), `set ${key}`);
    }
    if (options.memoryPattern === false) check(api, api.DisableMemPattern(native), "switch memory patterns off");
    if (options.profile !== undefined) check(api, api.EnableProfiling(native, options.profile), "set up profiling");
    if (operators !== undefined) check(api, api.AddCustomOpDomain(native, operators), "know milora's operators");
    appendDevice(native, options.device ?? "cpu");
    addWeights(api, native);
    const given = new BigUint64Array(1); // not `out`: others use that while a worker thread is at it
    void given.buffer; // see `out`
    const size = model.byteLength;
    const status = yield prepacked === undefined
      ? { call: api.CreateSessionFromArray, args: [env, model, size, native, given] }
      : {
          call: api.CreateSessionFromArrayWithPrepackedWeightsContainer,
          args: [env, model, size, native, prepacked.pointer, given],
        };
    check(api, status, "load the model");
    return given[0]!;
  } finally {
    api.ReleaseSessionOptions(native);
  }
}

/** What the model declares must be there and fit: the runtime trusts shapes. What it does not declare is left alone. */
function requireWeights(wanted: ReadonlyMap<string, ExternalInitializer>, given: ReadonlyMap<string, Tensor>): void {
  const missing = [...wanted.keys()].filter((name) => !given.has(name));
  if (missing.length > 0) {
    throw new RuntimeError(
      "MISSING_BINDING",
      `the model needs initializers that were not given: ${showNames(missing)}`,
    );
  }
  for (const [name, initializer] of wanted) {
    const tensor = given.get(name)!;
    requireUsable(handleOf(tensor), `the initializer ${name}`);
    const { onnxType, shape } = initializer;
    if (DTYPES[tensor.dtype].onnx !== onnxType) {
      const dtype = dtypeOfOnnx(onnxType) ?? `ONNX type ${onnxType}`;
      throw new RuntimeError(
        "DTYPE_MISMATCH",
        `initializer ${name} is ${dtype} in the model, the tensor ${tensor.dtype}`,
      );
    }
    if (shape.length !== tensor.shape.length || shape.some((dim, axis) => dim !== tensor.shape[axis])) {
      throw new RuntimeError(
        "SHAPE_MISMATCH",
        `initializer ${name} has shape ${showShape(shape)} in the model, the tensor has ${showShape(tensor.shape)}`,
      );
    }
  }
}
