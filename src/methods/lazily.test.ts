/** @file Adapters whose numbers stay in their file until something asks for them. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { readBackboneConfig, SafetensorsFile, writeSafetensors } from "../models/index.ts";
import { Tensor } from "../runtime/index.ts";
import { Adapter, methodOf, WEIGHTS_FILE } from "./index.ts";

const backbone = readBackboneConfig("assets/tiny-llama");
let directory: string;
let path: string;

beforeAll(async () => {
  directory = join(mkdtempSync(join(tmpdir(), "lazily-")), "adapter");
  path = join(directory, WEIGHTS_FILE);
  using adapter = Adapter.create(methodOf("milora"), { r: 4 }, backbone, 7);
  for (const key of adapter.tensors.keys()) if (key.includes("lora_B")) adapter.values(key).fill(0.25);
  await adapter.save(directory);
});
afterAll(() => rmSync(join(directory, ".."), { recursive: true }));

/** How often the file was opened, and whether it is open. */
function watched(contents?: () => Uint8Array) {
  const opened: SafetensorsFile[] = [];
  const open = (): SafetensorsFile => {
    opened.push(SafetensorsFile.open(path, contents?.()));
    return opened.at(-1)!;
  };
  const isOpen = (): boolean => {
    try {
      opened.at(-1)!.read(opened.at(-1)!.entries.keys().next().value!);
      return true;
    } catch {
      return false;
    }
  };
  return { open, opened, isOpen };
}

test.each([
  ["in memory", () => readFileSync(path)],
  ["on disk", undefined],
] as const)(
  "numbers of a file %s are read without tensors, and become tensors when these are asked for",
  (_, contents) => {
    using whole = Adapter.load(directory, backbone);
    const { open, opened, isOpen } = watched(contents);
    const allocate = vi.spyOn(Tensor, "allocate");
    using lazy = Adapter.lazily(directory, backbone, open);
    expect(lazy.byteLength).toBe(whole.byteLength);
    expect(lazy.byteLength).toBe(4 * [...["weights", "activation"] as const].reduce((n, group) => n + (whole.flat(group)?.data.length ?? 0), 0)); // biome-ignore format: one line
    for (const { key } of whole.specs) expect(lazy.values(key)).toEqual(whole.values(key));
    expect(allocate).not.toHaveBeenCalled();
    expect(opened).toHaveLength(1);
    lazy.closeFile();
    expect(isOpen()).toBe(false);
    expect(lazy.values(whole.specs[0]!.key)).toEqual(whole.values(whole.specs[0]!.key));
    expect(opened).toHaveLength(2);
    expect(lazy.digest).toBe(whole.digest);
    expect(allocate).toHaveBeenCalled();
    expect(isOpen()).toBe(false);
    for (const [key, tensor] of lazy.tensors) expect(tensor.data).toEqual(whole.values(key));
    lazy.values(whole.specs[0]!.key)[0] = 5;
    expect((lazy.tensors.get(whole.specs[0]!.key)!.data as Float32Array)[0]).toBe(5);
    expect(opened).toHaveLength(2);
    allocate.mockRestore();
  },
);

test("in a file in memory float32 numbers are not copied", () => {
  const contents = new Uint8Array(readFileSync(path)); // at the start of a buffer of its own
  using lazy = Adapter.lazily(directory, backbone, watched(() => contents).open);
  expect(lazy.values(lazy.specs[0]!.key).buffer).toBe(contents.buffer);
  const shifted = new Uint8Array(contents.length + 1).subarray(1);
  shifted.set(contents);
  using other = Adapter.lazily(directory, backbone, watched(() => shifted).open);
  expect(other.values(lazy.specs[0]!.key).buffer).not.toBe(shifted.buffer);
  expect(other.values(lazy.specs[0]!.key)).toEqual(lazy.values(lazy.specs[0]!.key));
});

test("of a file that does not fit nothing stays open, and disposing gives the file back", () => {
  const { open, isOpen } = watched();
  const other = { ...backbone, intermediateSize: backbone.intermediateSize + 8 };
  expect(() => Adapter.lazily(directory, other, open)).toThrow(/does not fit its config and this backbone/);
  expect(isOpen()).toBe(false);
  const { open: again, isOpen: stillOpen } = watched();
  const lazy = Adapter.lazily(directory, backbone, again);
  expect(stillOpen()).toBe(true);
  lazy.dispose();
  expect(stillOpen()).toBe(false);
  expect(lazy.disposed).toBe(true);
  expect(() => lazy.tensors).toThrow(/disposed/);
});

test("numbers of half precision", () => {
  const halves = join(directory, "..", "halves.safetensors");
  writeSafetensors(halves, new Map([["x", { dtype: "float16", shape: [2], data: Uint16Array.of(0x3c00, 0xc000) }]]));
  using file = SafetensorsFile.open(halves, readFileSync(halves));
  expect(file.float32("x")).toEqual(Float32Array.of(1, -2));
});
