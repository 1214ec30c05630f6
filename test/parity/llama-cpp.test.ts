/** @file llama.cpp's own numbers (benchmarks/gguf-check.ts): our GGUF models, and LoRA adapters as we export them for it. */
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "../../src/generation/index.ts";
import { Adapter, exportGguf, methodOf } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { distance, FIXTURES, fixture } from "./support.ts";

interface Case {
  readonly model: string;
  readonly adapter: string | null;
  readonly dtype: "f32" | "f16";
  readonly sha256: string | null;
  readonly sequences: readonly { tokens: number[]; logits: number[]; greedy: number[] }[];
}

const { cases } = fixture<{ cases: Case[] }>("gguf", "llama-cpp.json");
const modelAt = (name: string) => join(FIXTURES, "gguf", `${name}.gguf`);

let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "llama-cpp-"));
});
afterAll(() => rmSync(scratch, { recursive: true }));

test.each(cases)("$model, adapter $adapter, $dtype", async ({ model, adapter: name, dtype, sha256, sequences }) => {
  using backbone = await Backbone.load(modelAt(model));
  using adapter = name === null ? undefined : Adapter.load(join(FIXTURES, name), backbone.config);
  if (adapter) {
    // The file is the very one that llama.cpp computed with.
    const path = join(scratch, `${name!.replace("/", "-")}-${dtype}.gguf`);
    exportGguf(adapter, path, { dtype });
    expect(createHash("sha256").update(readFileSync(path)).digest("hex")).toBe(sha256);
  }
  using engine = Engine.create(backbone);
  // llama.cpp rounds what it multiplies by weights of half precision to half precision (the other models it had in
  // float32), and takes the GELU of Gemma from a table of half precision.
  const half = dtype === "f16" || /-b?f16$/.test(model);
  const tolerance = half ? 0.05 : model.startsWith("gemma") ? 5e-3 : 1e-4;
  for (const { tokens, logits, greedy } of sequences) {
    const ours = await engine.inspectTokens(tokens, adapter);
    expect(distance(ours.logits, logits)).toBeLessThan(tolerance);
    const options = { maxNewTokens: greedy.length };
    const [result] = await engine.generate([{ prompt: tokens, options, ...(adapter && { adapter }) }]);
    expect(result!.tokens).toEqual(greedy.slice(0, result!.tokens.length));
    expect(result!.tokens.length === greedy.length || result!.finishReason === "stop").toBe(true);
    expect(result!.tokens.length).toBeGreaterThan(0);
  }
});

test("the cases differ, so that agreeing means something", () => {
  const bare = cases.find(({ model, adapter }) => model === "llama-gqa-f32" && adapter === null)!;
  for (const name of ["all-modules", "patterns", "rslora"]) {
    const adapted = cases.find(({ adapter }) => adapter === `lora/${name}`)!;
    expect(distance(adapted.sequences[2]!.logits, bare.sequences[2]!.logits)).toBeGreaterThan(0.1);
  }
});

test.each([
  ["dora", /fold it into the backbone with `milora adapters merge`/],
  ["milora", /llama\.cpp has nothing that computes it/],
])("%s is refused, with what to do instead", async (method, message) => {
  using backbone = await Backbone.load(modelAt("llama-gqa-f32"));
  using adapter = Adapter.create(methodOf(method), {}, backbone.config, 1, backbone);
  const output = join(scratch, `${method}.gguf`);
  expect(() => exportGguf(adapter, output)).toThrow(
    expect.objectContaining({ code: "ADAPTER_NOT_EXPORTABLE" }) as Error,
  );
  expect(() => exportGguf(adapter, output)).toThrow(message);
});
