/** @file Damaged weights: safetensors and GGUF files, their headers and their bytes. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { GgufModel } from "../../src/models/gguf/model.ts";
import { hasTokenizer, tokenizerFiles } from "../../src/models/gguf/tokenizer.ts";
import { SafetensorsFile, Tokenizer } from "../../src/models/index.ts";
import { byteDamage, damageBytes, damageJson, hold, jsonDamage, scratch, settings, Tally, TIMEOUT } from "./support.ts";

const directory = scratch();
const damages = <T>(one: fc.Arbitrary<T>) => fc.array(one, { minLength: 1, maxLength: 4 });

function readSafetensorsFile(path: string): void {
  using file = SafetensorsFile.open(path);
  for (const entry of file.entries.values()) {
    if (entry.dtype === undefined) continue;
    const { data, shape } = file.read(entry.name);
    hold(data.length === shape.reduce((a, b) => a * b, 1), entry.name);
  }
}

function withHeader(json: string, data: Uint8Array): Buffer {
  const header = Buffer.from(json);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, data]);
}

const adapter = readFileSync("test/fixtures/lora/qv-suffixes/adapter_model.safetensors");
const headerEnd = 8 + Number(adapter.readBigUInt64LE(0));

test(
  "safetensors, damaged bytes",
  async () => {
    const tally = new Tally();
    const path = join(directory.path, "bytes.safetensors");
    await fc.assert(
      fc.asyncProperty(damages(byteDamage), async (list) => {
        writeFileSync(path, damageBytes(adapter, list));
        await tally.check(() => readSafetensorsFile(path));
      }),
      settings(800),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "safetensors, damaged header",
  async () => {
    const tally = new Tally();
    const path = join(directory.path, "header.safetensors");
    const [header, data] = [adapter.toString("utf8", 8, headerEnd), adapter.subarray(headerEnd)];
    await fc.assert(
      fc.asyncProperty(damages(jsonDamage), async (list) => {
        writeFileSync(path, withHeader(damageJson(header, list), data));
        await tally.check(() => readSafetensorsFile(path));
      }),
      settings(800),
    );
    tally.conclude();
  },
  TIMEOUT,
);

function readGguf(path: string): void {
  using model = GgufModel.open(path);
  for (const [name, { shape, storedDType }] of model.tensors) {
    if (!model.readable.includes(storedDType)) continue;
    const size = shape.reduce((a, b) => a * b, 1);
    hold(model.readFloat32(name, new Float32Array(size)).length === size, name);
  }
  if (!hasTokenizer(model.metadata)) return;
  const tokenizer = Tokenizer.from({ ...tokenizerFiles(model.metadata, path), where: path });
  const ids = tokenizer.encode("Hello, wörld 12!\n <s>");
  expect(ids.every((id) => Number.isInteger(id) && id >= 0)).toBe(true);
  expect(typeof tokenizer.decode(ids)).toBe("string");
  expect(JSON.stringify(tokenizerFiles(model.metadata, path, true))).toContain("added_tokens");
}

test.each(["llama-gqa-q4_0", "blocks", "metadata", "tokenizer-spm", "tokenizer-smollm"])(
  "GGUF, %s with damaged bytes",
  async (name) => {
    const tally = new Tally();
    const path = join(directory.path, `${name}.gguf`);
    const source = readFileSync(`test/fixtures/gguf/${name}.gguf`);
    await fc.assert(
      fc.asyncProperty(damages(byteDamage), async (list) => {
        writeFileSync(path, damageBytes(source, list));
        await tally.check(() => readGguf(path));
      }),
      settings(400),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test.each(["llama", "unigram"])(
  "tokenizer.model, %s with damaged bytes",
  async (name) => {
    const tally = new Tally();
    const source = readFileSync(`test/fixtures/tokenizers/sentencepiece/${name}.model`);
    await fc.assert(
      fc.asyncProperty(damages(byteDamage), async (list) => {
        writeFileSync(join(directory.path, "tokenizer.model"), damageBytes(source, list));
        await tally.check(() => {
          const tokenizer = Tokenizer.load(directory.path);
          const ids = tokenizer.encode("Hello, wörld 12!\n <s>");
          expect(ids.every((id) => Number.isInteger(id) && id >= 0)).toBe(true);
          expect(typeof tokenizer.decode(ids)).toBe("string");
        });
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);
