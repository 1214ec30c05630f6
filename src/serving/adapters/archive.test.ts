/** @file Archives: what an adapter is packed into is read; everything that is none is refused before it is passed on. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { InputError } from "../../base/index.ts";
import { readArchive } from "./archive.ts";
import { type Entry, entriesOf, fixture, inChunks, tar, temporary } from "./testing.ts";

const MIB = 1024 * 1024;

/** Reads an archive; what was passed on, by name. */
async function read(bytes: Uint8Array | AsyncIterable<Uint8Array>, maxBytes = MIB, chunk = 1000) {
  const files = new Map<string, Buffer>();
  const source = bytes instanceof Uint8Array ? inChunks(bytes, chunk) : bytes;
  const skipped = await readArchive(source, maxBytes, async (file, content) => {
    const parts: Uint8Array[] = [];
    for await (const part of content) parts.push(part);
    files.set(file, Buffer.concat(parts));
  });
  return { files, skipped };
}

/** What was said of an archive that is refused; nothing of the offending entry may have been passed on. */
async function refused(entries: readonly Entry[], code = "ARCHIVE_INVALID"): Promise<string> {
  const passed: string[] = [];
  const error = await readArchive(inChunks(await tar(entries)), MIB, async (file, content) => {
    for await (const _ of content);
    passed.push(file);
  }).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(InputError);
  expect((error as InputError).code).toBe(code);
  expect(passed.length).toBeLessThan(entries.length);
  return (error as InputError).message;
}

const good = entriesOf(fixture);

describe("is read", () => {
  test.each([
    ["a tar", "", (bytes: Buffer) => bytes],
    ["a tar.gz", "", (bytes: Buffer) => gzipSync(bytes)],
    ["a tar in two gzip members", "", (b: Buffer) => Buffer.concat([gzipSync(b.subarray(0, 700)), gzipSync(b.subarray(700))])], // biome-ignore format: one line
    ["a tar with one directory", "adapter/", (bytes: Buffer) => bytes],
    ["a tar of .", "./", (bytes: Buffer) => gzipSync(bytes)],
  ])("%s, in chunks of any size", async (_, prefix, packed) => {
    const bytes = packed(await tar(entriesOf(fixture, prefix)));
    for (const chunk of [1, 511, 512, 65536]) {
      const { files } = await read(bytes, MIB, chunk);
      for (const [name, content] of files) expect(content.equals(readFileSync(join(fixture, name)))).toBe(true);
      expect(files.size).toBe(2);
    }
  });

  test("what tar itself writes, long names and other files with it", async () => {
    const directory = temporary();
    const archive = join(directory, "a.tgz");
    execFileSync("tar", ["czf", archive, "-C", "test/fixtures/lora", "qv-suffixes"]);
    const { files, skipped } = await read(readFileSync(archive));
    expect([...files.keys()].sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    expect(skipped).toEqual(["qv-suffixes/expected.json"]);
    for (const format of ["--format=pax", "--format=gnu"]) {
      const long = join(directory, `${"x".repeat(120)}`);
      execFileSync("cp", ["-r", fixture, long]);
      execFileSync("tar", ["cf", archive, format, "-C", directory, "x".repeat(120)]);
      expect((await read(readFileSync(archive))).files.size).toBe(2);
      execFileSync("rm", ["-r", long]);
    }
  });
});

describe("is refused", () => {
  test.each<[string, Entry, string]>([
    ["an absolute path", { name: "/etc/adapter_config.json" }, "absolute path"],
    ["a drive", { name: "C:/adapter_config.json" }, "absolute path"],
    ["a way out", { name: "a/../../adapter_config.json" }, "leads out"],
    ["a backslash", { name: "..\\adapter_config.json" }, "backslash"],
    ["a control character", { name: "a\u0007b" }, "control character"],
    ["a symbolic link", { name: "adapter_config.json", type: "symlink", linkname: "/etc/passwd" }, "symlink"],
    ["a hard link", { name: "adapter_config.json", type: "link", linkname: "/etc/passwd" }, "link"],
    ["a device", { name: "adapter_config.json", type: "character-device" }, "character-device"],
    ["a directory with content", { name: "a/", type: "directory", size: 5 }, "directory with content"],
    ["a pipe", { name: "adapter_config.json", type: "fifo" }, "fifo"],
    ["a file twice", { name: "adapter_config.json", content: "{}" }, "twice"],
    ["a file twice, another way", { name: "./adapter_config.json", content: "{}" }, "twice"],
    ["two adapters", { name: "b/adapter_config.json", content: "{}" }, "more than one adapter"],
  ])("%s", async (_, entry, message) => {
    expect(await refused([...good, entry])).toContain(message);
    if (!message.match(/twice|more than/)) expect(await refused([entry, ...good])).toContain(message);
  });

  test("files that are missing, and pickles are named", async () => {
    expect(await refused([{ name: "readme.md" }])).toContain("no adapter_config.json and no adapter_model.safetensors");
    expect(await refused([good[0]!, { name: "adapter_model.bin" }])).toContain("pickle");
    expect(await refused(entriesOf(fixture, "a/b/"))).toContain("no adapter_config.json");
  });

  test("what is no archive, says how to make one", async () => {
    const zip = Buffer.from("504b0304140000000800", "hex");
    for (const bytes of [Buffer.alloc(0), Buffer.from("hello"), zip, Buffer.alloc(2000, 7), gzipSync("hello")]) {
      await expect(read(bytes)).rejects.toThrow(/ARCHIVE|tar czf|no adapter_config/);
      await expect(read(bytes)).rejects.toMatchObject({ code: "ARCHIVE_INVALID" });
    }
  });

  test("one that is cut anywhere", async () => {
    const whole = await tar(good);
    const packed = gzipSync(whole);
    const end = whole.length - 1024; // the two empty blocks may be missing
    for (let cut = 1; cut < end; cut += 997) {
      await expect(read(whole.subarray(0, cut))).rejects.toMatchObject({ code: "ARCHIVE_INVALID" });
    }
    for (let cut = 1; cut < packed.length; cut += 499) {
      await expect(read(packed.subarray(0, cut))).rejects.toMatchObject({ code: "ARCHIVE_INVALID" });
    }
  });

  test("more than is allowed: declared, in sum, in number, when unpacked", async () => {
    const big = { name: "x", content: Buffer.alloc(MIB + 1, 1) };
    expect(await refused([big, ...good], "PAYLOAD_TOO_LARGE")).toContain("allowed");
    const half = Buffer.alloc(0.6 * MIB, 1);
    expect(await refused([{ name: "x", content: half }, { name: "y", content: half }], "PAYLOAD_TOO_LARGE")).toContain("allowed"); // biome-ignore format: one line
    const config = { name: "adapter_config.json", content: Buffer.alloc(MIB + 1, 32) };
    await expect(read(await tar([config]), 8 * MIB)).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE" });
    const many = Array.from({ length: 300 }, (_, i) => ({ name: `f${i}` }));
    expect(await refused([...many, ...good])).toContain("256 entries");
    expect(await refused([{ name: "d".repeat(1100) }, ...good])).toContain("path of 1100");
    const zeros = gzipSync(await tar([{ name: "x", content: Buffer.alloc(32 * MIB) }]));
    await expect(read(zeros, 64 * MIB)).rejects.toThrow("compressed more than 100 times");
    await expect(read(zeros, MIB)).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE" });
  });

  test("what has no end is not read to it", async () => {
    let given = 0;
    async function* endless(start: Uint8Array): AsyncGenerator<Uint8Array> {
      yield start;
      for (;;) {
        given += 65536;
        yield Buffer.alloc(65536);
      }
    }
    await expect(read(endless(await tar(good)))).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE" });
    expect((await read(endless(gzipSync(await tar(good))))).files.size).toBe(2); // gzip says where it ends
    expect(given).toBeLessThan(8 * MIB);
  });
});

test("a stream that is refused is read to its end, not torn down: who sends it is still to be answered", async () => {
  const stream = Readable.from(inChunks(Buffer.alloc(4 * MIB, 7), 65536), { objectMode: false });
  const ended = once(stream, "end");
  await expect(readArchive(stream, MIB, async () => {})).rejects.toMatchObject({ code: "ARCHIVE_INVALID" });
  expect(stream.destroyed).toBe(false);
  await ended;
});

test("what the source or the receiver throws is what is heard, and the source is let go", async () => {
  let ended = 0;
  const failure = new Error("connection lost");
  async function* breaking(at: number): AsyncGenerator<Uint8Array> {
    try {
      const bytes = await tar(good);
      yield bytes.subarray(0, at);
      if (at < bytes.length) throw failure;
    } finally {
      ended++;
    }
  }
  for (const at of [0, 100, 600, 5000]) await expect(read(breaking(at))).rejects.toBe(failure);
  const full = new Error("disk full");
  const receiving = readArchive(breaking(1e9), MIB, async () => {
    throw new InputError("OUTPUT_UNWRITABLE", "x", "y", { cause: full });
  });
  await expect(receiving).rejects.toMatchObject({ code: "OUTPUT_UNWRITABLE" });
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(ended).toBe(5);
});
