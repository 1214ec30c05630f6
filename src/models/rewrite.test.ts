/** @file Tests of rewriting a checkpoint, and of the rounding to float16 that it may need. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { float16ToFloat32, float32ToFloat16 } from "../base/index.ts";
import {
  readBackboneConfig,
  readSafetensors,
  rewriteCheckpoint,
  type StoredTensor,
  writeSafetensors,
} from "./index.ts";

const fixtures = new URL("../../test/fixtures/backbones/", import.meta.url).pathname;
let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "rewrite-"));
});
afterAll(() => rmSync(scratch, { recursive: true }));

test("float16 and back is exact for every float16", () => {
  const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const floats = new Float32Array(65536);
  float16ToFloat32(all, floats);
  const back = float32ToFloat16(floats);
  const wrong = [...all].filter((i) => (Number.isNaN(floats[i]) ? (back[i]! & 0x7fff) <= 0x7c00 : back[i] !== i));
  expect(wrong).toEqual([]);
});

test("float16 is rounded to the nearest, halves to even, and overflows to infinity", () => {
  const table = new Float32Array(0x7c01); // every value from 0 up to infinity
  float16ToFloat32(
    Uint16Array.from(table, (_, i) => i),
    table,
  );
  table[0x7c00] = 65536; // where the next one would be
  const round = (value: number) => float32ToFloat16(Float32Array.of(value))[0]!;
  const wrong = Array.from({ length: 0x7c00 }, (_, i) => i).filter((i) => {
    const [low, high] = [table[i]!, table[i + 1]!];
    const middle = round((low + high) / 2) === i + (i % 2); // every midpoint is a float32
    const below = round(low + (high - low) * 0.49) === i;
    return !middle || !below || round(-(low + (high - low) * 0.51)) !== (0x8000 | (i + 1));
  });
  expect(wrong).toEqual([]);
  expect(round(Number.POSITIVE_INFINITY)).toBe(0x7c00);
});

test("what does not change is copied bit for bit, whatever its dtype", async () => {
  const from = join(scratch, "half");
  cpSync(join(fixtures, "llama-tied"), from, { recursive: true });
  const path = join(from, "model.safetensors");
  const { tensors, metadata } = readSafetensors(path);
  const halves = [...tensors].map(([name, { shape, data }]): [string, StoredTensor] => {
    return [name, { dtype: "float16", shape, data: float32ToFloat16(data as Float32Array) }];
  });
  // As some exports do: the head of tied embeddings repeated, and a table that is computed anyway.
  const table = halves.find(([name]) => name.includes("embed_tokens"))![1];
  const more: [string, StoredTensor][] = [
    ["lm_head.weight", table],
    ["model.rotary_emb.inv_freq", { dtype: "float32", shape: [2], data: Float32Array.of(1, 2) }],
  ];
  writeSafetensors(path, new Map([...halves, ...more]), metadata);
  const to = join(scratch, "copy");
  const seen: number[] = [];
  await rewriteCheckpoint(from, readBackboneConfig(from), to, () => undefined, { onProgress: (n) => seen.push(n) });
  expect(readSafetensors(join(to, "model.safetensors")).tensors).toEqual(new Map([...halves].sort()));
  expect(seen).toEqual(halves.map((_, i) => i + 1));
  writeSafetensors(path, new Map(halves), metadata);
  expect(readFileSync(join(to, "model.safetensors")).equals(readFileSync(path))).toBe(true);
});

test("a file that stands where the copy should go is not touched", async () => {
  const to = join(scratch, "file");
  writeFileSync(to, "mine");
  const from = join(fixtures, "llama-tied");
  const rewriting = rewriteCheckpoint(from, readBackboneConfig(from), to, () => undefined);
  await expect(rewriting).rejects.toMatchObject({ code: "OUTPUT_EXISTS" });
  expect(readFileSync(to, "utf8")).toBe("mine");
});
