/** @file System calls about memory, of the C library that the process runs on, and large pages. */
import koffi from "koffi";
import { environment } from "./environment.ts";
import { loaded, type Pointer } from "./library.ts";

interface MemoryCalls {
  map(address: null, bytes: number, protection: number, flags: number, file: number, offset: number): number | bigint;
  unmap(address: Pointer, bytes: number): number;
  advise(address: Pointer, bytes: number, advice: number): number;
}

const MADV_HUGEPAGE = 14;
const LARGE_PAGE = 2n ** 21n;

let found: MemoryCalls | undefined | null = null;
/** Undefined where there are none, as on Windows. */
export function memoryCalls(): MemoryCalls | undefined {
  if (found !== null) return found;
  found = undefined;
  if (process.platform !== "linux" && process.platform !== "darwin") return found;
  environment(); // settles what koffi wants to know before it loads anything
  try {
    const own = koffi.load(null);
    loaded.push(own);
    found = {
      map: own.func("mmap", "uintptr_t", ["void *", "size_t", "int", "int", "int", "int64_t"]) as MemoryCalls["map"],
      unmap: own.func("munmap", "int", ["uintptr_t", "size_t"]) as MemoryCalls["unmap"],
      advise: own.func("madvise", "int", ["uintptr_t", "size_t", "int"]) as MemoryCalls["advise"],
    };
  } catch {
    found = undefined;
  }
  return found;
}

/**
 * Asks Linux for large pages under memory that is read as a whole, over and over: a processor knows the places of few pages at
 * a time. It is best done before the memory is touched; memory smaller than such a page is left alone.
 */
export function adviseLargePages(address: Pointer, byteLength: number): void {
  if (process.platform !== "linux") return;
  const from = ((address + LARGE_PAGE - 1n) / LARGE_PAGE) * LARGE_PAGE;
  const to = ((address + BigInt(byteLength)) / LARGE_PAGE) * LARGE_PAGE;
  if (from < to) memoryCalls()?.advise(from, Number(to - from), MADV_HUGEPAGE);
}

/** JavaScript memory, zeros, of large pages where there are any. */
export function allocateLarge(byteLength: number): ArrayBuffer {
  const buffer = new ArrayBuffer(byteLength);
  if (byteLength > 0) adviseLargePages(koffi.address(new Uint8Array(buffer)) as Pointer, byteLength);
  return buffer;
}
