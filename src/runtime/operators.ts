/** @file milora's own operators for ONNX Runtime: a small prebuilt library, where there is one for this machine. */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import type { DeviceName } from "./devices.ts";
import { enlargeStacks, openLibrary, type Pointer } from "./library.ts";

/** Domain of the operators in models. */
export const OPERATOR_DOMAIN = "milora";

/** What A and B of an item are: its number, and bytes of a number. */
export const PACKED_FORMS = {
  float32: { code: 0, bytes: 4 },
  float16: { code: 1, bytes: 2 },
  int8: { code: 2, bytes: 1 },
} as const;
export type PackedForm = keyof typeof PACKED_FORMS;

/** Operators that a session can be given, and helpers of theirs. */
export interface Operators {
  /** Instruction set that they use. */
  readonly instructions: string;
  /** OrtCustomOp structs. */
  readonly structs: readonly Pointer[];
  /** Says how many threads the runtime has. */
  useThreads(count: number): void;
  /** Does packings one after the other. */
  pack(packings: readonly Packing[]): void;
}

/** Copies a matrix float32 to `target` in a form. Pieces of memory are addresses, or arrays that do not move. */
export interface Packing {
  readonly source: Pointer | Float32Array;
  readonly rows: number;
  readonly columns: number;
  /** B [rows, rank], in the order that items have it in (native/kernels.h), and not A [rank, columns] in its own. */
  readonly banded: boolean;
  readonly form: PackedForm;
  /** With room for that. */
  readonly target: Pointer | ArrayBufferView;
  /** float32 [rank], for int8: multiplied with the scales of the numbers of each rank. */
  readonly ranks?: Pointer | Float32Array | undefined;
}

/** Numbers of struct Packing of native/operators/library.c. */
const PACKING_WIDTH = 7;

function structsOf(packings: readonly Packing[]): BigInt64Array {
  const place = (memory: Pointer | ArrayBufferView | undefined): bigint =>
    memory === undefined ? 0n : typeof memory === "bigint" ? memory : (koffi.address(memory) as bigint);
  const structs = new BigInt64Array(packings.length * PACKING_WIDTH);
  for (const [i, { source, rows, columns, banded, form, target, ranks }] of packings.entries()) {
    const numbers = [rows, columns, Number(banded), PACKED_FORMS[form].code].map(BigInt);
    structs.set([place(source), ...numbers, place(target), place(ranks)], i * PACKING_WIDTH);
  }
  return structs;
}

let found: Operators | null | undefined;

/**
 * The operators of a device; undefined but on the CPU, and where there is no library for this platform, its processor lacks the instructions (AVX2), or
 * the environment variable MILORA_OPERATORS is `off` (`avx2`: no wider instructions than these). Graphs then use the
 * runtime's own operators alone.
 */
export function operators(device: DeviceName = "cpu"): Operators | undefined {
  if (device !== "cpu") return undefined;
  found ??= load() ?? null;
  return found ?? undefined;
}

function load(): Operators | undefined {
  if (process.env.MILORA_OPERATORS === "off") return undefined;
  const path = fileURLToPath(new URL(`../../native/prebuilt/${process.platform}-${process.arch}.so`, import.meta.url));
  if (!existsSync(path)) return undefined;
  enlargeStacks();
  const library = openLibrary(path);
  const start = library.func("str milora_start(size_t, int)") as (threads: number, bits: number) => string | null;
  const bits = process.env.MILORA_OPERATORS === "avx2" ? 256 : 512;
  const instructions = start(1, bits);
  if (instructions === null) return undefined;
  const at = library.func("void *milora_operator(size_t)") as (index: number) => Pointer | null;
  const structs: Pointer[] = [];
  for (let struct = at(0); struct !== null; struct = at(structs.length)) structs.push(struct);
  const pack = library.func("void milora_pack(void *, int64)");
  return {
    instructions,
    structs,
    useThreads: (count) => void start(count, bits),
    pack: (packings) => pack(structsOf(packings), packings.length),
  };
}
