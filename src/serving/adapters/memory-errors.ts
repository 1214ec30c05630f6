/** @file What is said when there is no memory for an adapter: not now, or never. */
import { InputError, MiloraError } from "../../base/index.ts";

/** All memory for adapters is in use by requests that run; it will be free again. */
export class AdaptersBusyError extends MiloraError {
  readonly status = 503;
  readonly retryAfterSeconds: number;

  constructor(message: string, retryAfterSeconds: number) {
    super("ADAPTERS_BUSY", message, { exitCode: 1 });
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export function exceedsMemory(bytes: number, maxBytes: number): InputError {
  return new InputError(
    "ADAPTER_TOO_LARGE",
    "the adapter",
    `takes ${bytes} bytes of memory, more than the ${maxBytes} there are for adapters`,
  );
}
