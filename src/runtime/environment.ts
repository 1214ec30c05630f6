/** @file The one environment of the process: a single thread pool shared by every session, made at first use. */
import { availableParallelism } from "node:os";
import { type Api, bindApi, check, out, outPointer } from "./api.ts";
import { RuntimeError } from "./errors.ts";
import { type Library, loadLibrary, type Pointer } from "./library.ts";
import { OPERATOR_DOMAIN, operators } from "./operators.ts";

export type LogLevel = "verbose" | "info" | "warning" | "error" | "fatal";
const LOG_LEVELS: readonly LogLevel[] = ["verbose", "info", "warning", "error", "fatal"];

export interface RuntimeOptions {
  /** Threads that compute one operator together. Default: the processors this process may use. */
  threads?: number;
  /** Whether idle threads spin for a while, which saves microseconds at every operator. Default: true. */
  spin?: boolean;
  /**
   * What the runtime writes to stderr. Default: fatal, because every failure is also thrown as an error that holds
   * the runtime's own message.
   */
  logLevel?: LogLevel;
}

export interface Environment {
  readonly library: Library;
  readonly api: Api;
  readonly env: Pointer;
  /** OrtMemoryInfo of memory that the CPU reads and writes. */
  readonly cpu: Pointer;
  /** The runtime's CPU allocator. Belongs to the runtime: never released. */
  readonly allocator: Pointer;
  /** OrtCustomOpDomain of milora's own operators. */
  readonly operators: Pointer | undefined;
}

let options: RuntimeOptions = {};
let current: Environment | undefined;

/**
 * Settings of the environment; call it before the first session or tensor.
 *
 * @throws RuntimeError RUNTIME_FAILED when the environment exists already or a setting makes no sense
 */
export function configureRuntime(settings: RuntimeOptions): void {
  if (current !== undefined) {
    throw new RuntimeError("RUNTIME_FAILED", "configureRuntime must be called before the first tensor or session");
  }
  const { threads, logLevel } = settings;
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
    throw new RuntimeError("RUNTIME_FAILED", `threads must be a positive integer, not ${threads}`);
  }
  if (logLevel !== undefined && !LOG_LEVELS.includes(logLevel)) {
    throw new RuntimeError("RUNTIME_FAILED", `logLevel must be one of ${LOG_LEVELS.join(", ")}, not ${logLevel}`);
  }
  options = { ...options, ...settings };
}

/** The environment, made at the first call. @throws RuntimeError LIBRARY_MISSING, RUNTIME_FAILED */
export function environment(): Environment {
  current ??= create();
  return current;
}

/** Version of the loaded ONNX Runtime, such as "1.30.0". */
export function runtimeVersion(): string {
  return environment().library.version;
}

const threadCount = (): number => options.threads ?? availableParallelism();

function create(): Environment {
  const library = loadLibrary();
  const api = bindApi(library);
  check(api, api.CreateThreadingOptions(out), "set up its threads");
  const threading = outPointer();
  let env: Pointer;
  try {
    check(api, api.SetGlobalIntraOpNumThreads(threading, threadCount()), "set the number of threads");
    check(api, api.SetGlobalInterOpNumThreads(threading, 1), "set the number of threads");
    check(api, api.SetGlobalSpinControl(threading, (options.spin ?? true) ? 1 : 0), "set spinning");
    const level = LOG_LEVELS.indexOf(options.logLevel ?? "fatal");
    check(api, api.CreateEnvWithGlobalThreadPools(level, "milora", threading, out), "create its environment");
    env = outPointer();
  } finally {
    api.ReleaseThreadingOptions(threading);
  }
  const OrtArenaAllocator = 1;
  const OrtMemTypeDefault = 0;
  check(api, api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out), "describe CPU memory");
  const cpu = outPointer();
  // For sessions that are created with `session.use_env_allocators`: one arena for all of them.
  check(api, api.CreateAndRegisterAllocator(env, cpu, null), "create an arena that sessions share");
  check(api, api.GetAllocatorWithDefaultOptions(out), "give its allocator");
  const allocator = outPointer();
  return { library, api, env, cpu, allocator, operators: operatorDomain(api) };
}

function operatorDomain(api: Api): Pointer | undefined {
  const own = operators();
  if (!own) return undefined;
  own.useThreads(threadCount());
  check(api, api.CreateCustomOpDomain(OPERATOR_DOMAIN, out), "create a domain of operators");
  const domain = outPointer();
  for (const struct of own.structs) check(api, api.CustomOpDomain_Add(domain, struct), "add an operator");
  return domain;
}
