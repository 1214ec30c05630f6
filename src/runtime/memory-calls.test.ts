/** @file Large pages are asked for where the system has them, and for nothing that is not whole. */
import { readFileSync } from "node:fs";
import koffi from "koffi";
import { describe, expect, test } from "vitest";
import { allocateLarge } from "./memory-calls.ts";

const MIB = 2 ** 20;

/** What the kernel was asked for about the memory at an address; undefined where it does not tell. */
function flagsAt(buffer: ArrayBuffer, byteOffset: number): string[] | undefined {
  const address = BigInt(koffi.address(new Uint8Array(buffer, byteOffset)) as bigint);
  let flags: string[] | undefined;
  let inside = false;
  for (const line of readFileSync("/proc/self/smaps", "utf8").split("\n")) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (range) inside = BigInt(`0x${range[1]}`) <= address && address < BigInt(`0x${range[2]}`);
    else if (inside && line.startsWith("VmFlags:")) flags = line.slice("VmFlags:".length).trim().split(" ");
  }
  return flags;
}

function hasLargePages(): boolean {
  try {
    return !readFileSync("/sys/kernel/mm/transparent_hugepage/enabled", "utf8").includes("[never]");
  } catch {
    return false;
  }
}

describe.skipIf(!hasLargePages())("large pages", () => {
  test("are asked for in the middle of large memory", () => {
    const buffer = allocateLarge(16 * MIB);
    expect(flagsAt(buffer, 8 * MIB)).toContain("hg");
    expect(new Uint8Array(buffer).every((byte) => byte === 0)).toBe(true);
  });

  test("not for memory that holds none", () => {
    const buffer = allocateLarge(MIB);
    expect(flagsAt(buffer, MIB / 2)).not.toContain("hg");
  });
});

test("no memory at all is none", () => {
  expect(allocateLarge(0).byteLength).toBe(0);
});
