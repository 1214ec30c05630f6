/** @file Safetensors: exact round trips, every damaged header refused with a typed error, bounded memory. */
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../base/index.ts";
import type { DType } from "../runtime/index.ts";
import { readSafetensors, SafetensorsFile, type StoredTensor, writeSafetensors } from "./safetensors.ts";
import { duplicateKeys, elementCount } from "./safetensors-header.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "safetensors-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const at = (name: string): string => join(directory, name);

/** Writes a file with the given header and data, as a program with bad intent would. */
function craft(header: unknown, dataBytes = 0, name = "crafted.safetensors"): string {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const json = Buffer.isBuffer(header) ? header : Buffer.from(text);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(at(name), Buffer.concat([length, json, Buffer.alloc(dataBytes)]));
  return at(name);
}

function problemsOf(path: string): readonly string[] {
  try {
    SafetensorsFile.open(path).dispose();
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    return (error as InputError).problems;
  }
  return [];
}

const tensor = (dtype: string, shape: unknown, begin: unknown, end: unknown) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

describe("round trip", () => {
  const examples: Record<string, StoredTensor> = {
    "a.float32": { dtype: "float32", shape: [2, 3], data: Float32Array.of(1, -2, 3.5, 0, Number.NaN, -0) },
    "b.int64": { dtype: "int64", shape: [2], data: BigInt64Array.of(-1n, 2n ** 62n) },
    "c.bool": { dtype: "bool", shape: [3], data: Uint8Array.of(1, 0, 1) },
    "d.bfloat16": { dtype: "bfloat16", shape: [1], data: Uint16Array.of(0x3f80) },
    "e.scalar": { dtype: "float64", shape: [], data: Float64Array.of(Math.PI) },
    "f.empty": { dtype: "float32", shape: [0, 4], data: new Float32Array(0) },
    "10": { dtype: "int8", shape: [1], data: Int8Array.of(-128) },
    "9": { dtype: "uint16", shape: [1], data: Uint16Array.of(65535) },
    'quote"\n€𝄞': { dtype: "int32", shape: [1], data: Int32Array.of(-5) },
    __proto__x: { dtype: "int16", shape: [2], data: Int16Array.of(1, -1) },
  };

  test("every dtype, empty and scalar tensors, odd names and metadata come back; saving again gives the same bytes", () => {
    const path = at("all.safetensors");
    writeSafetensors(path, new Map(Object.entries(examples)), { z: "last", format: "pt", "1": "ü" });
    const { tensors, metadata } = readSafetensors(path);
    expect(Object.fromEntries(tensors)).toEqual(examples);
    expect(metadata).toEqual({ z: "last", format: "pt", "1": "ü" });
    const again = at("again.safetensors");
    writeSafetensors(again, new Map([...tensors].reverse()), metadata);
    expect(readFileSync(again).equals(readFileSync(path))).toBe(true);
  });

  test("data begin on a multiple of 8 and every tensor on a multiple of its element size", () => {
    const path = at("aligned.safetensors");
    writeSafetensors(path, new Map(Object.entries(examples)));
    expect(Number(readFileSync(path).readBigUInt64LE(0)) % 8).toBe(0);
    using file = SafetensorsFile.open(path);
    for (const entry of file.entries.values()) {
      expect(entry.begin % (entry.size === 0 ? 1 : (entry.end - entry.begin) / entry.size)).toBe(0);
    }
  });

  test("reads what the reference implementation wrote", () => {
    using file = SafetensorsFile.open("assets/tiny-llama/model.safetensors");
    expect(file.metadata).toEqual({ format: "pt" });
    expect(file.entries.size).toBe(56);
    const norm = file.read("model.norm.weight");
    expect([norm.dtype, norm.shape]).toEqual(["bfloat16", [192]]);
    // Rewriting it gives the same tensors byte for byte.
    const { tensors, metadata } = readSafetensors(file.path);
    writeSafetensors(at("rewritten.safetensors"), tensors, metadata);
    const sha = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
    expect(sha(at("rewritten.safetensors"))).toBe(sha(file.path));
  });

  test("a tensor whose data do not fit its shape is not written, and all such are named", () => {
    const bad: StoredTensor = { dtype: "float32", shape: [2], data: new Float32Array(3) };
    const write = () => writeSafetensors(at("bad"), new Map([["x", bad], ["y", bad], ["__metadata__", bad]])); // biome-ignore format: one line
    expect(write).toThrow(/4 problems: .*"x" float32 \[2\] has 12 bytes.*"y"/s);
    expect(() => readFileSync(at("bad"))).toThrow(/ENOENT/);
  });
});

describe("conversion to float32", () => {
  /** IEEE value of a bit pattern with `exponentBits` and `mantissaBits`, from the definition. */
  function decode(bits: number, exponentBits: number, mantissaBits: number): number {
    const sign = bits >>> 15 ? -1 : 1;
    const exponent = (bits >>> mantissaBits) & (2 ** exponentBits - 1);
    const mantissa = bits & (2 ** mantissaBits - 1);
    const bias = 2 ** (exponentBits - 1) - 1;
    if (exponent === 2 ** exponentBits - 1) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits);
    return sign * (1 + mantissa / 2 ** mantissaBits) * 2 ** (exponent - bias);
  }

  test.each([
    ["float16", 5, 10],
    ["bfloat16", 8, 7],
  ] as const)("all 65,536 values of %s", (dtype, exponentBits, mantissaBits) => {
    const patterns = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const path = at(`${dtype}.safetensors`);
    writeSafetensors(path, new Map([["x", { dtype, shape: [65536], data: patterns }]]));
    using file = SafetensorsFile.open(path);
    const values = file.readFloat32("x", new Float32Array(65536));
    const wrong = [...patterns].filter((bits) => !Object.is(values[bits], decode(bits, exponentBits, mantissaBits)));
    expect(wrong).toEqual([]);
  });

  test("parts of a tensor larger than the chunk, from any offset, and the observer sees the stored bytes in order", () => {
    const size = 1_300_001;
    const stored = Uint16Array.from({ length: size }, (_, i) => 0x3f80 + (i % 1000));
    const path = at("long.safetensors");
    writeSafetensors(path, new Map([["x", { dtype: "bfloat16", shape: [size], data: stored }]]));
    using file = SafetensorsFile.open(path);
    const seen = createHash("sha256");
    const whole = file.readFloat32("x", new Float32Array(size), 0, (bytes) => seen.update(bytes));
    expect(seen.digest("hex")).toBe(createHash("sha256").update(new Uint8Array(stored.buffer)).digest("hex"));
    expect(whole[size - 1]).toBe(decode(stored[size - 1]!, 8, 7));
    const part = file.readFloat32("x", new Float32Array(600_000), 700_001);
    expect(Buffer.compare(Buffer.from(part.buffer), Buffer.from(whole.slice(700_001).buffer))).toBe(0);
    expect(() => file.readFloat32("x", new Float32Array(2), size - 1)).toThrow(RangeError);
  });

  test("float64 is rounded; integers and dtypes without a counterpart are refused by name", () => {
    const path = at("mixed.safetensors");
    const double: StoredTensor = { dtype: "float64", shape: [1], data: Float64Array.of(0.1) };
    writeSafetensors(path, new Map([["d", double], ["i", { dtype: "int8", shape: [1], data: Int8Array.of(1) }]])); // biome-ignore format: one line
    using file = SafetensorsFile.open(path);
    expect(file.readFloat32("d", new Float32Array(1))[0]).toBe(Math.fround(0.1));
    expect(() => file.readFloat32("i", new Float32Array(1))).toThrow(/"i" is I8/);
    using eight = SafetensorsFile.open(craft({ f: tensor("F8_E4M3", [4], 0, 4) }, 4));
    expect(() => eight.read("f")).toThrow(/"f" is F8_E4M3/);
    expect(() => eight.read("g")).toThrow(/no tensor named "g"/);
  });
});

describe("a header that lies", () => {
  test.each<[string, unknown, number, RegExp]>([
    ["overlap", { a: tensor("U8", [4], 0, 4), b: tensor("U8", [4], 2, 6) }, 6, /"b": overlaps/],
    ["hole", { a: tensor("U8", [2], 0, 2), b: tensor("U8", [2], 4, 6) }, 6, /"b": 2 bytes before it belong/],
    ["bytes left over", { a: tensor("U8", [2], 0, 2) }, 5, /last 3 bytes/],
    ["past the end", { a: tensor("U8", [9], 0, 9) }, 4, /ends at byte 9 of 4/],
    ["one byte past the end", { a: tensor("U8", [5], 0, 5) }, 4, /ends at byte 5 of 4/],
    ["more bytes than elements", { a: tensor("U8", [2], 0, 4) }, 4, /needs 2 bytes, .* hold 4/],
    ["backwards", { a: tensor("U8", [0], 4, 0) }, 4, /backwards/],
    ["wrong length", { a: tensor("F32", [2], 0, 4) }, 4, /needs 8 bytes/],
    ["negative dimension", { a: tensor("U8", [-4], 0, 4) }, 4, /shape.0/],
    ["fraction", { a: tensor("U8", [1.5], 0, 4) }, 4, /shape.0/],
    ["negative offset", { a: tensor("U8", [4], -4, 0) }, 4, /data_offsets.0/],
    ["unsafe integer", { a: tensor("U8", [2 ** 53], 0, 4) }, 4, /shape.0/],
    ["overflowing product", { a: tensor("F64", [2 ** 27, 2 ** 27], 0, 4) }, 4, /overflows/],
    ["overflowing bytes", { a: tensor("F64", [2 ** 52], 0, 4) }, 4, /overflows/],
    ["unknown dtype", { a: tensor("F31", [4], 0, 4) }, 4, /unknown dtype/],
    ["dtype of Object", { a: tensor("constructor", [4], 0, 4) }, 4, /unknown dtype/],
    ["a field too many", { a: { ...tensor("U8", [4], 0, 4), path: "/etc/passwd" } }, 4, /[Uu]nrecognized/],
    ["a field missing", { a: { dtype: "U8", shape: [4] } }, 4, /data_offsets/],
    ["metadata of numbers", { __metadata__: { a: 1 } }, 0, /__metadata__/],
    ["null tensor", { a: null }, 0, /"a"/],
    ["array", "[]", 0, /does not begin with/],
    ["no JSON", "{nope", 0, /not valid JSON/],
    ["invalid UTF-8", Buffer.from('{"\xe9":0}', "latin1"), 0, /not valid JSON/],
    ["nesting", `{"a":${"[".repeat(100_000)}`, 0, /nested deeper/],
    ["empty header", "", 0, /does not begin with/],
    ["duplicate name", `{"a":${JSON.stringify(tensor("U8", [1], 0, 1))},"\\u0061":${JSON.stringify(tensor("U8", [1], 0, 1))}}`, 1, /"a" occurs twice/], // biome-ignore format: one line
    [
      "duplicate field",
      '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
      1,
      /"dtype" occurs twice/,
    ],
  ])("%s", (_, header, dataBytes, message) => {
    expect(problemsOf(craft(header, dataBytes)).join("\n")).toMatch(message);
  });

  test("all problems are listed at once, but not a hundred thousand of them", () => {
    const three = { a: tensor("U8", [-1], 0, 4), b: tensor("X", [4], 0, 4), c: tensor("U8", [5], 0, 4) };
    expect(problemsOf(craft(three, 4))).toHaveLength(3);
    const many = Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`t${i}`, tensor("X", [1], 0, 1)]));
    const problems = problemsOf(craft(many, 1));
    expect(problems).toHaveLength(101);
    expect(problems.at(-1)).toBe("and 4900 more");
  });

  test("huge declared lengths are refused before anything is allocated", () => {
    const prefix = Buffer.alloc(16);
    prefix.writeBigUInt64LE(2n ** 64n - 1n);
    writeFileSync(at("huge"), prefix);
    expect(problemsOf(at("huge")).join()).toMatch(/header of 18446744073709551615 bytes/);
    prefix.writeBigUInt64LE(1_000_000n);
    writeFileSync(at("huge"), prefix);
    expect(problemsOf(at("huge")).join()).toMatch(/truncated/);
  });

  test("files that are missing, directories, or too short", () => {
    expect(problemsOf(at("none"))).toEqual(["no such file"]);
    expect(problemsOf(directory)).toEqual(["not a regular file"]);
    writeFileSync(at("short"), "1234567");
    expect(problemsOf(at("short")).join()).toMatch(/only 7 bytes/);
  });

  test("a file cut while it is open gives an error, not garbage", () => {
    const path = at("cut.safetensors");
    writeSafetensors(path, new Map([["x", { dtype: "float32", shape: [1000], data: new Float32Array(1000) }]]));
    using file = SafetensorsFile.open(path);
    truncateSync(path, 400);
    expect(() => file.read("x")).toThrow(/became shorter/);
    file.dispose();
    expect(() => file.read("x")).toThrow(/is closed/);
  });

  test("names and shapes helpers", () => {
    expect(elementCount([])).toBe(1);
    expect(elementCount([2 ** 52, 2 ** 52, 0])).toBe(0);
    expect(elementCount([2 ** 27, 2 ** 26])).toBeUndefined();
    expect(duplicateKeys('{"a":{"x":1,"y":"\\"x\\":"},"b":["a","a"],"a" : 2}')).toEqual(["a"]);
  });
});

describe("fuzzing", () => {
  /** Opens and reads everything; either it works or it is a typed error. Gives the tensors when it worked. */
  function attempt(path: string): Map<string, StoredTensor> | undefined {
    try {
      return readSafetensors(path).tensors;
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      return undefined;
    }
  }

  const stored: [string, StoredTensor][] = [
    ["w", { dtype: "float32", shape: [4, 5], data: Float32Array.from({ length: 20 }, (_, i) => i) }],
    ["v", { dtype: "int8", shape: [7], data: Int8Array.from({ length: 7 }, (_, i) => -i) }],
    ["e", { dtype: "bfloat16", shape: [0], data: new Uint16Array(0) }],
  ];

  test("truncated anywhere: always an error", () => {
    writeSafetensors(at("base"), new Map(stored), { a: "b" });
    const bytes = readFileSync(at("base"));
    for (let length = 0; length < bytes.length; length++) {
      writeFileSync(at("fuzzed"), bytes.subarray(0, length));
      expect(attempt(at("fuzzed"))).toBeUndefined();
    }
  });

  test("bits flipped: an error, or tensors that fill the file exactly", () => {
    writeSafetensors(at("base"), new Map(stored), { a: "b" });
    const bytes = readFileSync(at("base"));
    const flips = fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(7)), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(flips, (list) => {
        const damaged = Buffer.from(bytes);
        for (const [byte, bit] of list) damaged[byte]! ^= 1 << bit;
        writeFileSync(at("fuzzed"), damaged);
        const tensors = attempt(at("fuzzed"));
        if (!tensors) return;
        const total = [...tensors.values()].reduce((sum, { data }) => sum + data.byteLength, 0);
        expect(total).toBe(bytes.length - 8 - Number(damaged.readBigUInt64LE(0)));
      }),
      { numRuns: 600 },
    );
  });

  test("random headers: an error, or every tensor inside the file with the bytes it asked for", () => {
    const odd = fc.oneof(
      fc.integer({ min: -4, max: 24 }),
      fc.constantFrom(2 ** 31, 2 ** 53, 1e300, -0, 0.5, null, "4", 4_294_967_296),
    );
    const entry = fc.record(
      {
        dtype: fc.constantFrom("F32", "U8", "BF16", "F64", "BOOL", "U64", "", "f32"),
        shape: fc.oneof(fc.array(odd, { maxLength: 3 }), fc.constant({ 0: 1 })),
        data_offsets: fc.oneof(fc.tuple(odd, odd), fc.array(odd)),
      },
      { requiredKeys: ["dtype", "shape"] },
    );
    const header = fc.dictionary(fc.oneof(fc.string(), fc.constantFrom("a", "b", "__metadata__", "__proto__")), entry, {
      maxKeys: 4,
    });
    fc.assert(
      fc.property(header, fc.nat(32), (value, dataBytes) => {
        const path = craft(value, dataBytes, "fuzzed");
        const tensors = attempt(path);
        for (const { shape, data } of tensors?.values() ?? []) {
          expect(data.length).toBe(elementCount(shape));
          expect(data.byteLength).toBeLessThanOrEqual(dataBytes);
        }
      }),
      { numRuns: 600 },
    );
  });

  test("random sound files are read as written", () => {
    const dtypes: [DType, (values: number[]) => StoredTensor["data"]][] = [
      ["float32", (values) => Float32Array.from(values)],
      ["uint8", (values) => Uint8Array.from(values)],
      ["float16", (values) => Uint16Array.from(values)],
      ["int64", (values) => BigInt64Array.from(values.map((value) => BigInt(value)))],
    ];
    const one = fc.tuple(fc.constantFrom(...dtypes), fc.array(fc.nat(255), { maxLength: 9 }));
    fc.assert(
      fc.property(fc.dictionary(fc.string({ minLength: 1 }), one), (value) => {
        const tensors = new Map<string, StoredTensor>();
        for (const [name, [[dtype, make], values]] of Object.entries(value)) {
          tensors.set(name, { dtype, shape: [values.length], data: make(values) });
        }
        writeSafetensors(at("sound"), tensors);
        expect(new Map(attempt(at("sound")))).toEqual(tensors);
      }),
      { numRuns: 60 },
    );
  });
});
