/** @file Damaged archives of adapters: tar and gzip, at random, and with headers that are wrong but sum up. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { readArchive } from "../../src/serving/adapters/archive.ts";
import { entriesOf, fixture, inChunks, tar } from "../../src/serving/adapters/testing.ts";
import { byteDamage, damageBytes, settings, Tally, TIMEOUT } from "./support.ts";

const MAX_BYTES = 256 * 1024;
const damages = fc.array(byteDamage, { minLength: 1, maxLength: 4 });
const archive = await tar(entriesOf(fixture, "adapter/"));

/** Where the header of the second file is. */
const configBytes = readFileSync(join(fixture, "adapter_config.json")).length;
const second = 512 + Math.ceil(configBytes / 512) * 512;

/** What is accepted has the two files of an adapter, and is no larger than allowed. */
async function read(bytes: Uint8Array, chunk: number): Promise<void> {
  const sizes = new Map<string, number>();
  await readArchive(inChunks(bytes, chunk), MAX_BYTES, async (file, content) => {
    expect(sizes.has(file)).toBe(false);
    let size = 0;
    for await (const part of content) size += part.length;
    sizes.set(file, size);
  });
  expect([...sizes.keys()].sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
  expect([...sizes.values()].reduce((a, b) => a + b)).toBeLessThanOrEqual(MAX_BYTES);
}

const chunks = fc.constantFrom(100, 512, 4096, 65536);

test(
  "tar, damaged bytes",
  async () => {
    const tally = new Tally();
    // From a header on, or from what follows one: damage to content is for others to see.
    const from = fc.constantFrom(0, 512, second, second + 512);
    await fc.assert(
      fc.asyncProperty(damages, chunks, from, (list, chunk, at) =>
        tally.check(() =>
          read(Buffer.concat([archive.subarray(0, at), damageBytes(archive.subarray(at), list)]), chunk),
        ),
      ),
      settings(600),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "tar.gz, damaged bytes, and what lies in it",
  async () => {
    const tally = new Tally();
    const packed = gzipSync(archive);
    await fc.assert(
      fc.asyncProperty(damages, chunks, fc.boolean(), (list, chunk, outside) => {
        const bytes = outside ? damageBytes(packed, list) : gzipSync(damageBytes(archive, list), { level: 1 });
        return tally.check(() => read(bytes, chunk));
      }),
      settings(600),
    );
    tally.conclude();
  },
  TIMEOUT,
);

/** Where a header says what: names, size, kind, link, magic, prefix. */
const FIELDS = { name: [0, 100], mode: [100, 8], size: [124, 12], type: [156, 1], link: [157, 100], prefix: [345, 155] } as const; // biome-ignore format: one line
const NAMES = ["../x", "/etc/passwd", "adapter_config.json", "a/adapter_config.json", "adapter_model.safetensors", ""];
const field = fc.oneof(
  fc.record({ at: fc.constant("name" as const), value: fc.constantFrom(...NAMES).map((text) => Buffer.from(text)) }),
  fc.record({
    at: fc.constant("size" as const),
    value: fc.oneof(
      fc
        .constantFrom("0", "00000000777", "77777777777", "-0000000001", "zzz", "99999999999")
        .map((t) => Buffer.from(t)),
      fc.constantFrom("80ffffffffffffffffffffff", "ffffffffffffffffffffff00", "800000000000000000000400").map((t) => Buffer.from(t, "hex")), // biome-ignore format: one line
    ),
  }),
  // Kinds that tar knows: links, devices, long names, extended headers.
  fc.record({
    at: fc.constant("type" as const),
    value: fc.constantFrom(..."01234567LKxgSVM\0").map((t) => Buffer.from(t)),
  }),
  fc.record({
    at: fc.constantFrom("mode" as const, "link" as const, "prefix" as const),
    value: fc.uint8Array({ minLength: 1, maxLength: 8 }).map((bytes) => Buffer.from(bytes)),
  }),
);

function withField(bytes: Buffer, header: number, { at, value }: { at: keyof typeof FIELDS; value: Buffer }): void {
  const [offset, length] = FIELDS[at];
  bytes.fill(0, header + offset, header + offset + length);
  value.copy(bytes, header + offset, 0, Math.min(value.length, length));
  bytes.fill(32, header + 148, header + 156);
  const sum = bytes.subarray(header, header + 512).reduce((a, b) => a + b, 0);
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, header + 148, "latin1");
}

test(
  "tar, headers that are wrong but sum up",
  async () => {
    const tally = new Tally();
    expect(archive.subarray(second, second + 33).toString()).toBe("adapter/adapter_model.safetensors");
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.constantFrom(0, second), field), { minLength: 1, maxLength: 3 }),
        chunks,
        fc.boolean(),
        (fields, chunk, packed) => {
          const bytes = Buffer.from(archive);
          for (const [header, change] of fields) withField(bytes, header, change);
          return tally.check(() => read(packed ? gzipSync(bytes, { level: 1 }) : bytes, chunk));
        },
      ),
      settings(1000),
    );
    tally.conclude();
  },
  TIMEOUT,
);
