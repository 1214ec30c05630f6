/** @file Outputs of rows on disk: appended as they are made, found again by what decided them, so that a measurement goes on. */
import { createHash } from "node:crypto";
import { appendFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { z } from "zod";
import { InputError, reasonOf } from "../base/index.ts";

const outputSchema = z.discriminatedUnion("kind", [
  z
    .object({ kind: z.literal("choice"), logLikelihoods: z.array(z.number()), greedy: z.array(z.boolean()) })
    .refine(({ logLikelihoods, greedy }) => logLikelihoods.length === greedy.length),
  z.object({ kind: z.literal("generate"), text: z.string(), tokens: z.int().min(0) }),
]);
const lineSchema = z.object({ key: z.string(), output: outputSchema });

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

  /**
   * @param path a JSONL file, which need not exist; without one nothing is kept
   * @throws InputError FILE_UNREADABLE, OUTPUT_UNWRITABLE
   */
  constructor(path?: string) {
    this.#path = path;
    if (path === undefined || !existsSync(path)) return;
    const bytes = read(path);
    for (const line of linesOf(bytes)) {
      const known = outputOf(line);
      if (known) this.#outputs.set(known.key, known.output);
    }
    const last = bytes.at(-1);
    if (last !== undefined && last !== NEWLINE) append(path, "\n");
  }

  get(key: string): RowOutput | undefined {
    return this.#outputs.get(key);
  }

  /** Keeps outputs of rows; `about` is written beside them for whoever reads the file. */
  put(rows: readonly { readonly key: string; readonly about: object; readonly output: RowOutput }[]): void {
    for (const { key, output } of rows) this.#outputs.set(key, output);
    if (this.#path === undefined || rows.length === 0) return;
    const lines = rows.map(({ key, about, output }) => `${JSON.stringify({ ...about, key, output })}\n`);
    append(this.#path, lines.join(""));
  }
}

const NEWLINE = 0x0a;

function read(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new InputError("FILE_UNREADABLE", path, reasonOf(error), { cause: error });
  }
}

function append(path: string, text: string): void {
  try {
    mkdirSync(dirname(path), { recursive: true });
    appendFileSync(path, text);
  } catch (error) {
    throw new InputError("OUTPUT_UNWRITABLE", path, reasonOf(error), { cause: error });
  }
}

/** Cut from the bytes: a file may be longer than a text can be. */
function* linesOf(bytes: Buffer): Generator<string> {
  for (let start = 0; start < bytes.length; ) {
    const found = bytes.indexOf(NEWLINE, start);
    const end = found < 0 ? bytes.length : found;
    yield bytes.toString("utf8", start, end);
    start = end + 1;
  }
}

/** Undefined for a line that was being written when the process ended, or was damaged since: its row is measured again. */
function outputOf(line: string): z.infer<typeof lineSchema> | undefined {
  try {
    return lineSchema.safeParse(JSON.parse(line)).data;
  } catch {
    return undefined;
  }
}
