/** @file The sizes of a backbone, read off an adapter alone, are enough to load and show it. */
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, sep } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { Adapter } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import { inferBackbone } from "./infer.ts";

const fixtures = new URL("../../../test/fixtures/", import.meta.url).pathname;
const backbones = { "p-tuning-v2/head-dim": "llama-headdim", "p-tuning-v2/one-token": "llama-tied" } as Record<
  string,
  string
>;

const cases = readdirSync(fixtures, { recursive: true, encoding: "utf8" })
  .map((path) => path.split(sep))
  .filter(([method, , file]) => file === "adapter_config.json" && method !== "saved")
  .map(([method, name]) => `${method}/${name}`)
  .filter((path) => path !== "full/tied");

const backboneOf = (path: string) => readBackboneConfig(join(fixtures, "backbones", backbones[path] ?? "llama-gqa"));

describe.each(cases)("%s", (path) => {
  test("is the adapter that it is on its own backbone", () => {
    const directory = join(fixtures, path);
    using told = Adapter.load(directory, backboneOf(path));
    using alone = Adapter.load(directory, inferBackbone(directory));
    expect(alone.digest).toBe(told.digest);
    expect(alone.method.structure?.(alone.config, alone.backbone)).toEqual(
      told.method.structure?.(told.config, told.backbone),
    );
  });
});

test.each(["phi3/lora", "phi3/milora", "gemma3/prefix", "qwen2/milora"])("of other families: %s", (path) => {
  const directory = join(fixtures, "families", path);
  using told = Adapter.load(directory, readBackboneConfig(join(directory, "..")));
  using alone = Adapter.load(directory, inferBackbone(directory));
  expect(alone.digest).toBe(told.digest);
});

test.each([
  ["p-tuning-v2/plain", { num_layers: null }],
  ["ia3/projected", { feedforward_modules: ".*up_proj" }],
])("what %s with %o does not tell, --model must", (path, change) => {
  const directory = mkdtempSync(join(tmpdir(), "milora-infer-"));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  cpSync(join(fixtures, path), directory, { recursive: true });
  const config = join(directory, "adapter_config.json");
  writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(config, "utf8")), ...change }));
  expect(() => inferBackbone(directory)).toThrow(/do not tell the backbone's sizes; name the backbone with --model/);
});
