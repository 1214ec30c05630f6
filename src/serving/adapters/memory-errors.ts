/** @file What is said when there is no memory for an adapter, or no handle for its files: not now, or never. */
import { InputError, MiloraError } from "../../base/index.ts";

/** All memory for adapters is in use by requests that run, or too many files are open; it will be free again. */
export class AdaptersBusyError extends MiloraError {
  readonly status = 503;
  readonly retryAfterSeconds: number;

  constructor(message: string, retryAfterSeconds: number) {
    super("ADAPTERS_BUSY", message, { exitCode: 1 });
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

const SHORT: Readonly<Record<string, string>> = {
  EMFILE: "too many files are open",
  ENFILE: "too many files are open",
  ENOMEM: "memory is short",
  EAGAIN: "the system is busy",
};
const RETRY_SECONDS = 1;

/** The system's code of a failed operation on a file. */
export function systemCode(error: unknown): string | undefined {
  const { code, syscall } = ((error instanceof InputError ? error.cause : error) ?? {}) as NodeJS.ErrnoException;
  return syscall === undefined ? undefined : code;
}

/** For a file that could not be read because of what passes and says nothing of it; undefined for any other error. */
export function passing(error: unknown): AdaptersBusyError | undefined {
  const reason = SHORT[systemCode(error) ?? ""];
  if (reason === undefined) return undefined;
  return new AdaptersBusyError(`an adapter's files cannot be read at the moment: ${reason}; try again`, RETRY_SECONDS);
}

export function exceedsMemory(bytes: number, maxBytes: number): InputError {
  return new InputError(
    "ADAPTER_TOO_LARGE",
    "the adapter",
    `takes ${bytes} bytes of memory, more than the ${maxBytes} there are for adapters`,
  );
}
