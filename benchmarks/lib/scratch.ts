/** @file A directory for one run, which goes with it, also when it is interrupted. */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";

export function scratch(parent: string, prefix: string): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(parent, prefix));
  const remove = (): void => rmSync(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 });
  process.once("exit", remove);
  return {
    path,
    [Symbol.dispose]: () => {
      process.removeListener("exit", remove);
      remove();
    },
  };
}
