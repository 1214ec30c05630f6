/** @file Files as memory: mapped where the system can, so that their pages are read when touched and shared by processes. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import koffi from "koffi";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";
import { Memory } from "./memory.ts";
import { adviseLargePages, memoryCalls } from "./memory-calls.ts";

// Of <sys/mman.h>, the same on Linux and macOS.
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_PRIVATE = 2;
const MADV_DONTNEED = 4;
const MAP_FAILED = 2n ** 64n - 1n;
/** Node refuses reads of 2 GiB and more. */
const LARGEST_READ = 2 ** 28;

/**
 * The bytes of a file, read-only in effect: whoever writes to them changes a copy of the page in this process only.
 * The file must not be cut while it is mapped; one that is replaced by rename stays as it was.
 *
 * Where files cannot be mapped each piece is read into memory when it is asked for.
 */
export class FileMapping implements Disposable {
  readonly byteLength: number;
  readonly #path: string;
  #file: number | undefined;
  /** The mapping; undefined where there is none. */
  readonly #memory: Memory | undefined;

  private constructor(path: string, file: number, byteLength: number, memory: Memory | undefined) {
    this.#path = path;
    this.#file = file;
    this.#memory = memory;
    this.byteLength = byteLength;
  }

  /** @throws the system's error */
  static open(path: string): FileMapping {
    const file = openSync(path, "r");
    try {
      const byteLength = fstatSync(file).size;
      return new FileMapping(path, file, byteLength, byteLength > 0 ? map(file, byteLength) : undefined);
    } catch (error) {
      closeSync(file);
      throw error;
    }
  }

  /** Whether it is a mapping; false where pieces are read. */
  get mapped(): boolean {
    return this.#memory !== undefined;
  }

  /** A piece of it as memory of its own, which keeps the mapping until it is released. */
  piece(byteOffset: number, byteLength: number): Memory {
    if (this.#file === undefined) throw new RuntimeError("TENSOR_FREED", `the mapping of ${this.#path} was disposed`);
    if (byteOffset < 0 || byteLength < 0 || byteOffset + byteLength > this.byteLength) {
      const range = `bytes ${byteOffset} to ${byteOffset + byteLength} of ${this.byteLength}`;
      throw new RuntimeError("SHAPE_MISMATCH", `${this.#path}: ${range} are asked for`);
    }
    const whole = this.#memory;
    if (whole === undefined) return read(this.#file, byteOffset, byteLength, this.#path);
    const address = whole.address + BigInt(byteOffset);
    whole.retain();
    return new Memory({ byteLength, device: "cpu", address, free: () => whole.release() });
  }

  /**
   * Gives back the pages that were read: they count for this process again once they are touched, and are then as in the
   * file. Any thread may be reading them meanwhile.
   */
  forget(): void {
    const whole = this.#memory;
    if (this.#file !== undefined && whole) memoryCalls()!.advise(whole.address, whole.byteLength, MADV_DONTNEED);
  }

  /** The mapping itself goes when the last tensor over it has gone. */
  dispose(): void {
    if (this.#file === undefined) return;
    closeSync(this.#file); // a mapping outlives the descriptor
    this.#file = undefined;
    this.#memory?.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function map(file: number, byteLength: number): Memory | undefined {
  const system = memoryCalls();
  if (system === undefined) return undefined;
  const address = BigInt(system.map(null, byteLength, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
  if (address === MAP_FAILED) return undefined;
  adviseLargePages(address, byteLength);
  return new Memory({ byteLength, device: "cpu", address, free: () => void system.unmap(address, byteLength) });
}

function read(file: number, byteOffset: number, byteLength: number, path: string): Memory {
  const bytes = new Uint8Array(new ArrayBuffer(byteLength));
  for (let done = 0; done < byteLength; ) {
    const got = readSync(file, bytes, done, Math.min(LARGEST_READ, byteLength - done), byteOffset + done);
    if (got === 0) throw new RuntimeError("RUNTIME_FAILED", `${path} became shorter while it was read`);
    done += got;
  }
  const address = byteLength === 0 ? 0n : (koffi.address(bytes) as Pointer);
  return new Memory({ byteLength, device: "cpu", address, shared: bytes });
}
