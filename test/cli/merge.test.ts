/** @file `milora adapters merge`: the merged model alone computes what backbone and adapter computed together. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { fixture, milora, temporary } from "./milora.ts";

const backbone = fixture("backbones", "llama-gqa");

async function logitsOf(model: string, ...flags: string[]): Promise<number[]> {
  const { stdout, stderr } = await milora(["logits", "--model", model, "--tokens", "1,50,77,12", "--json", ...flags]);
  expect(stderr).toBe("");
  return (JSON.parse(stdout) as { logits: number[] }).logits;
}

test("merged = unmerged", async () => {
  const output = join(temporary(), "merged");
  const adapter = fixture("lora", "all-modules");
  const { code, stdout } = await milora([
    ...["adapters", "merge", "--model", backbone, "--adapter", adapter, "--output", output, "--json"],
  ]);
  expect(code).toBe(0);
  expect((JSON.parse(stdout) as { changed: string[] }).changed).toHaveLength(7 * 3);
  const [merged, unmerged, bare] = [
    await logitsOf(output),
    await logitsOf(backbone, "--adapter", adapter),
    await logitsOf(backbone),
  ];
  const distance = (other: number[]) => Math.max(...merged.map((value, i) => Math.abs(value - other[i]!)));
  expect(distance(unmerged)).toBeLessThan(1e-4);
  expect(distance(bare)).toBeGreaterThan(0.1);
});

test("a routed adapter is refused, and nothing is written", async () => {
  const output = join(temporary(), "merged");
  const flags = ["--model", backbone, "--adapter", fixture("milora", "default"), "--output", output];
  const { code, stderr } = await milora(["adapters", "merge", ...flags]);
  expect(code).toBe(2);
  expect(stderr).toMatch(/^error: milora: cannot be folded into the weights.*\n$/);
  expect(existsSync(output)).toBe(false);
});
