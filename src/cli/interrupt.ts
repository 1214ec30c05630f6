/** @file Ctrl-C: the first asks the work to stop and save, the second ends the process at once. */
import { MiloraError } from "../base/index.ts";
import { note } from "./terminal.ts";

export interface Interrupt extends Disposable {
  readonly signal: AbortSignal;
}

/** Thrown when a command ends because of Ctrl-C; exit code 130 as shells expect. */
export class InterruptError extends MiloraError {
  constructor(message = "interrupted") {
    super("INTERRUPTED", message, { exitCode: 130 });
  }
}

/** What Ctrl-C would save, or stop so that it can go on; the innermost last. */
const underWay: (() => void)[] = [];

/** As Ctrl-C, where that saves something. @returns whether the command ends by itself now */
export function interruptWork(): boolean {
  underWay.at(-1)?.();
  return underWay.length > 0;
}

/**
 * From now until disposal SIGINT and SIGTERM abort `signal` instead of ending the process.
 *
 * @param message what the person is told, e.g. `saving the run …`; by default nothing is saved
 */
export function onInterrupt(message?: string): Interrupt {
  const controller = new AbortController();
  const handler = () => {
    if (controller.signal.aborted) process.exit(130);
    note(`\n${message ?? "stopping …"} (Ctrl-C again to quit at once)`);
    controller.abort(new InterruptError());
  };
  process.on("SIGINT", handler);
  process.on("SIGTERM", handler);
  if (message !== undefined) underWay.push(handler);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      if (message !== undefined) underWay.splice(underWay.indexOf(handler), 1);
      process.off("SIGINT", handler);
      process.off("SIGTERM", handler);
    },
  };
}

/** Until SIGINT or SIGTERM; a second one ends the process at once. */
export function untilTold(): Promise<void> {
  return new Promise((resolve) => {
    let told = false;
    const handler = (): void => {
      if (told) process.exit(130);
      told = true;
      resolve();
    };
    process.on("SIGINT", handler);
    process.on("SIGTERM", handler);
  });
}
