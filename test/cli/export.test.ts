/** @file `milora adapters export`: files for llama.cpp and PEFT, and models that are GGUF files in every command. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { fixture, milora, temporary } from "./milora.ts";

const backbone = fixture("backbones", "llama-gqa");
const gguf = fixture("gguf", "llama-gqa-f32.gguf");
const lora = fixture("lora", "all-modules");

test("gguf: a file of LoRA matrices, from a directory or a GGUF model alike", async () => {
  const bytes: Buffer[] = [];
  for (const model of [backbone, gguf]) {
    const output = join(temporary(), "lora.gguf");
    const { code, stdout } = await milora([
      ...["adapters", "export", "--model", model, "--adapter", lora, "--format", "gguf", "--output", output, "--json"],
    ]);
    expect(code).toBe(0);
    expect((JSON.parse(stdout) as { written: string[] }).written).toHaveLength(7 * 3);
    bytes.push(readFileSync(output));
  }
  expect(bytes[0]!.equals(bytes[1]!)).toBe(true);
  expect(bytes[0]!.subarray(0, 4).toString()).toBe("GGUF");
});

test("peft: the adapter as PEFT loads it; what PEFT has not is refused, and so is --dtype", async () => {
  const flags = (adapter: string, output: string) => [
    ...["adapters", "export", "--model", backbone, "--adapter", adapter, "--format", "peft", "--output", output],
  ];
  const output = join(temporary(), "peft");
  expect((await milora(flags(fixture("dora", "rslora"), output))).code).toBe(0);
  const config = JSON.parse(readFileSync(join(output, "adapter_config.json"), "utf8")) as Record<string, unknown>;
  expect(config).toMatchObject({ peft_type: "LORA", use_dora: true });
  expect(existsSync(join(output, "adapter_model.safetensors"))).toBe(true);

  const again = await milora(flags(lora, output));
  expect([again.code, again.stderr]).toEqual([2, expect.stringMatching(/^error: .*exists already/)]);
  const refused = await milora(flags(fixture("milora", "default"), join(temporary(), "other")));
  expect([refused.code, refused.stderr]).toEqual([
    2,
    "error: milora: PEFT has no such method; it runs in milora only\n",
  ]);
  const dtype = await milora([...flags(lora, join(temporary(), "third")), "--dtype", "f16"]);
  expect([dtype.code, dtype.stderr]).toEqual([2, expect.stringContaining("goes with --format gguf only")]);
});

test("a GGUF file is a model: logits with and without an adapter, and what is wrong with it in one line", async () => {
  const logitsOf = async (model: string, ...flags: string[]): Promise<number[]> => {
    const { stdout, stderr } = await milora(["logits", "--model", model, "--tokens", "1,50,77", "--json", ...flags]);
    expect(stderr).toBe("");
    return (JSON.parse(stdout) as { logits: number[] }).logits;
  };
  expect(await logitsOf(gguf)).toEqual(await logitsOf(backbone));
  expect(await logitsOf(gguf, "--adapter", lora)).toEqual(await logitsOf(backbone, "--adapter", lora));
  const { code, stderr } = await milora(["logits", "--model", join(lora, "adapter_config.json"), "--tokens", "1"]);
  expect([code, stderr]).toEqual([2, expect.stringMatching(/^error: .*no GGUF file\n$/)]);
});
