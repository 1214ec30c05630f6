/** @file Mapped files: tensors over them compute, keep them alive, and never write to them. */
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FileMapping, Session, Tensor } from "./index.ts";
import { ADD, testModel } from "./testing.ts";

const values = Float32Array.from({ length: 3000 }, (_, i) => i / 7);
let directory: string;
let path: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "mapping-"));
  path = join(directory, "data");
  writeFileSync(path, Buffer.concat([Buffer.alloc(64), Buffer.from(values.buffer)]));
});
afterAll(() => rmSync(directory, { recursive: true }));

describe("a tensor over a mapped file", () => {
  it("has the file's numbers, computes with them, and outlives the mapping", () => {
    const mapping = FileMapping.open(path);
    expect(mapping.mapped).toBe(process.platform !== "win32");
    expect(mapping.byteLength).toBe(64 + 12_000);
    using x = Tensor.mapped("float32", [3000], mapping, 64);
    using part = Tensor.mapped("float32", [4], mapping, 64 + 400);
    mapping.dispose();
    mapping.dispose();
    expect(x.data).toEqual(values);
    expect(part.data).toEqual(values.slice(100, 104));
    using session = Session.create(testModel(ADD));
    using ones = Tensor.from("float32", [3000], new Float32Array(3000).fill(1));
    using y = session.call({ a: x, b: ones }).y!;
    expect(y.data).toEqual(values.map((value) => value + 1));
    expect(() => Tensor.mapped("float32", [4], mapping, 0)).toThrow(/was disposed/);
  });

  it("changes memory, and not the file, when it is written to", () => {
    using mapping = FileMapping.open(path);
    using x = Tensor.mapped("float32", [3000], mapping, 64);
    using again = Tensor.mapped("float32", [3000], mapping, 64);
    (x.data as Float32Array)[7] = -1;
    expect(again.data[7]).toBe(process.platform === "win32" ? values[7] : -1);
    using fresh = FileMapping.open(path);
    using unchanged = Tensor.mapped("float32", [3000], fresh, 64);
    expect(unchanged.data).toEqual(values);
    expect(readFileSync(path).readFloatLE(64 + 28)).toBe(values[7]);
  });

  it.runIf(process.platform === "linux")("gives pages back, which are then as in the file", () => {
    const large = join(directory, "large");
    writeFileSync(large, new Uint8Array(2 ** 26).fill(7));
    const resident = () => Number(/^RssFile:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024;
    using mapping = FileMapping.open(large);
    using x = Tensor.mapped("uint8", [2 ** 26], mapping, 0);
    const read = () => (x.data as Uint8Array).every((value) => value === 7);
    const before = resident();
    expect(read()).toBe(true);
    expect(resident() - before).toBeGreaterThan(2 ** 25);
    mapping.forget();
    expect(resident() - before).toBeLessThan(2 ** 24);
    expect(read()).toBe(true);
    mapping.dispose();
    mapping.forget(); // nothing to do any more
    expect(read()).toBe(true);
  });

  it("stays as it was when the file is replaced", () => {
    using mapping = FileMapping.open(path);
    using x = Tensor.mapped("float32", [3000], mapping, 64);
    const other = join(directory, "other");
    writeFileSync(other, "short");
    const kept = join(directory, "kept");
    writeFileSync(kept, readFileSync(path));
    renameSync(other, path);
    expect(x.data).toEqual(values);
    renameSync(kept, path);
  });

  it("is refused beyond the end of the file", () => {
    using mapping = FileMapping.open(path);
    expect(() => Tensor.mapped("float32", [3000], mapping, 68)).toThrow(
      expect.objectContaining({ code: "SHAPE_MISMATCH" }) as Error,
    );
    expect(() => FileMapping.open(join(directory, "none"))).toThrow(/ENOENT/);
    const empty = join(directory, "empty");
    writeFileSync(empty, "");
    using nothing = FileMapping.open(empty);
    using none = Tensor.mapped("uint8", [0], nothing, 0);
    expect(none.data).toHaveLength(0);
  });
});
