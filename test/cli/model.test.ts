/** @file `milora model`: facts, prepared models in the cache and as directories, what they cost in quality, refusals. */
import { existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { fixture, milora, temporary, tiny } from "./milora.ts";

const small = fixture("backbones", "llama-untied");

test("info: sizes, files, tokenizer, memory", async () => {
  const { code, stdout } = await milora(["model", "info", tiny, "--json"], { env: { MILORA_CACHE: temporary() } });
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    family: "llama",
    parameters: 4_008_384,
    context: 1024,
    sites: { count: 42, modules: { q_proj: [192, 192], k_proj: [96, 192], down_proj: [192, 512] } },
    dtypes: { BF16: 4_008_384 },
    tokenizer: { tokens: 8192, chat_template: true },
    memory: { float32: 4 * 4_008_384 },
    kv_cache_bytes_per_token: 4608,
    prepared: [],
  });
  const shown = await milora(["model", "info", small]);
  expect(shown.stdout).toMatch(/family {6}llama/);
  expect(shown.stdout).toMatch(/tokenizer {3}none: token ids only/);
});

test("prepare fills the cache, commands use it, --verify finds damage", async () => {
  const env = { MILORA_CACHE: temporary() };
  const prepare = () => milora(["model", "prepare", small, "--json"], { env });
  const first = JSON.parse((await prepare()).stdout) as { path: string; reused: boolean; digest: string };
  expect(first).toMatchObject({ reused: false, weights: "int4", block_size: 32 });
  expect(first.path.startsWith(join(env.MILORA_CACHE, "prepared", first.digest))).toBe(true);
  expect(JSON.parse((await prepare()).stdout)).toMatchObject({ reused: true, path: first.path });
  const logits = (cache: string) =>
    milora(["logits", "--model", small, "--tokens", "1,5,7", "--weights", "int4", "--json"], {
      env: { MILORA_CACHE: cache },
    });
  expect((await logits(env.MILORA_CACHE)).stdout).toBe((await logits(temporary())).stdout);
  const info = () => milora(["model", "info", small, "--verify", "--json"], { env });
  expect(JSON.parse((await info()).stdout)).toMatchObject({ prepared: ["int4-32"], verified: [first.path] });
  const bytes = readFileSync(first.path);
  bytes[bytes.length - 3]! ^= 1;
  writeFileSync(first.path, bytes);
  expect(await info()).toMatchObject({ code: 2, stderr: expect.stringMatching(/not those that were written/) });
  truncateSync(first.path, 100);
  expect((await logits(env.MILORA_CACHE)).stdout).toBe((await logits(temporary())).stdout);
  expect((await info()).code).toBe(0); // it was made anew
});

test("prepare --calibrate --measure --output: a model of its own, closer to float32", async () => {
  const output = join(temporary(), "tiny-int4");
  const env = { MILORA_CACHE: temporary() };
  const text = join(tiny, "../data/subjects/dev.jsonl");
  const flags = ["--calibrate", text, "--measure", "--output", output, "--json"];
  const { code, stdout } = await milora(["model", "prepare", tiny, ...flags], { env });
  expect(code).toBe(0);
  const { measured } = JSON.parse(stdout) as { measured: { weights: string; ratio: number; tokens: number }[] };
  const ratio = new Map(measured.map((form) => [form.weights, form.ratio]));
  expect([...ratio.keys()]).toEqual(["float32", "int8", "int4", "int4, as prepared"]);
  expect(Math.abs(ratio.get("int8")! - 1)).toBeLessThan(0.002);
  expect(Math.abs(ratio.get("int4")! - 1)).toBeLessThan(0.035);
  expect(Math.abs(ratio.get("int4, as prepared")! - 1)).toBeLessThan(0.015);
  const used = await milora(["generate", "--model", output, "--prompt", "The cell", "--max-new-tokens", "3"], { env });
  expect(used).toMatchObject({ code: 0 });
  const other = await milora(["generate", "--model", output, "--weights", "int8", "--prompt", "x"], { env });
  expect(other).toMatchObject({ code: 2, stderr: expect.stringMatching(/prepared as int4/) });
});

test("what cannot be done is said in one line", async () => {
  const env = { MILORA_CACHE: temporary(), HF_ENDPOINT: "http://127.0.0.1:9" };
  const problem = async (...args: string[]) => {
    const { code, stderr } = await milora(["model", ...args], { env });
    expect([code, stderr.trim().split("\n").length]).toEqual([2, 1]);
    return stderr;
  };
  expect(await problem("info", "org/none")).toMatch(/milora model pull org\/none/);
  expect(await problem("pull", "none")).toMatch(/not of the form ORG\/NAME/);
  expect(await problem("pull", "org/none")).toMatch(/cannot be fetched/);
  expect(await problem("prepare", small, "--calibrate", join(tiny, "README.md"))).toMatch(/needs --output/);
  expect(await problem("prepare", small, "--block-size", "20")).toMatch(/Allowed choices are 32, 64, 128/);
  expect(existsSync(join(env.MILORA_CACHE, "prepared"))).toBe(false);
});
