/** @file Outputs of rows on disk: appended as they are made, found again by what decided them, so that a measurement goes on. */
import { createHash } from "node:crypto";
import { appendFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";

/** What a model gave for one row. */
export type RowOutput =
  | { readonly kind: "choice"; readonly logLikelihoods: readonly number[]; readonly greedy: readonly boolean[] }
  | { readonly kind: "generate"; readonly text: string; readonly tokens: number };

/** sha256 of anything that JSON can hold. */
export function digestOf(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}

/**
 * Outputs by key. A key is the digest of all that decides an output (model, adapter, tokens, decoding), so one file
 * may hold rows of many measurements, and none is ever taken for another's.
 */
export class RowStore {
  readonly #path: string | undefined;
  readonly #outputs = new Map<string, RowOutput>();

  /** @param path a JSONL file, which need not exist; without one nothing is kept */
  constructor(path?: string) {
    this.#path = path;
    if (path === undefined || !existsSync(path)) return;
    for (const line of readFileSync(path, "utf8").split("\n")) {
      if (line === "") continue;
      try {
        const { key, output } = JSON.parse(line) as { key: string; output: RowOutput };
        if (typeof key === "string" && output?.kind !== undefined) this.#outputs.set(key, output);
      } catch {
        // The line that was being written when the process ended: its row is measured again.
      }
    }
    const last = readFileSync(path).at(-1);
    if (last !== undefined && last !== 0x0a) appendFileSync(path, "\n");
  }

  get(key: string): RowOutput | undefined {
    return this.#outputs.get(key);
  }

  /** Keeps outputs of rows; `about` is written beside them for whoever reads the file. */
  put(rows: readonly { readonly key: string; readonly about: object; readonly output: RowOutput }[]): void {
    for (const { key, output } of rows) this.#outputs.set(key, output);
    if (this.#path === undefined || rows.length === 0) return;
    mkdirSync(dirname(this.#path), { recursive: true });
    const lines = rows.map(({ key, about, output }) => `${JSON.stringify({ ...about, key, output })}\n`);
    appendFileSync(this.#path, lines.join(""));
  }
}
