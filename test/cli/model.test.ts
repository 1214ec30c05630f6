/** @file `milora model`: facts, prepared models in the cache and as directories, what they cost in quality, refusals. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { fixture, milora, root, temporary, tiny } from "./milora.ts";

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

test("pull, interrupted and gone on with; the name then works as --model", async () => {
  const commit = "b".repeat(40);
  const files = readdirSync(small).filter((name) => name !== "expected.json");
  const shard = "model-00002-of-00003.safetensors";
  let stuck = true;
  const ranges: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url!.split("?")[0]!);
    const json = (value: unknown) => response.setHeader("content-type", "application/json").end(JSON.stringify(value));
    if (path.endsWith("/revision/main")) return json({ _id: "1", id: "org/model", sha: commit, private: false });
    if (path.includes("/tree/")) {
      return json(
        files.map((name) => {
          const content = readFileSync(join(small, name));
          const oid = createHash("sha256").update(content).digest("hex");
          return { type: "file", path: name, size: content.length, oid, lfs: { oid, size: content.length } };
        }),
      );
    }
    const name = path.split("/").at(-1)!;
    const content = readFileSync(join(small, name));
    const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
    if (name === shard) ranges.push(request.headers.range);
    if (from > 0) response.writeHead(206, { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` });
    if (name === shard && stuck) return response.write(content.subarray(0, 500)); // and nothing more
    return response.end(content.subarray(from));
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const HF_ENDPOINT = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const env = { MILORA_CACHE: temporary(), HF_ENDPOINT, HF_TOKEN: "" };
  const part = join(env.MILORA_CACHE, "models/org/model", commit, `${shard}.part`);
  const waiting = setInterval(() => {
    if (!existsSync(part) || statSync(part).size !== 500) return;
    clearInterval(waiting); // a second one would end it at once, with no exit code if it has just let go of the signal
    process.kill(-child.pid!, "SIGINT");
  }, 50);
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), "model", "pull", "org/model"], { env: { ...process.env, ...env }, detached: true, stdio: "ignore" }); // biome-ignore format: one line
  const code = await new Promise((done) => child.on("exit", done));
  clearInterval(waiting);
  expect(code).toBe(130);
  expect(statSync(part).size).toBe(500);
  stuck = false;
  const pulled = await milora(["model", "pull", "org/model", "--json"], { env });
  expect(JSON.parse(pulled.stdout)).toMatchObject({ commit, files: expect.arrayContaining([shard, "config.json"]) });
  expect(ranges).toEqual([undefined, "bytes=500-"]);
  const logits = (model: string) => milora(["logits", "--model", model, "--tokens", "1,5,7", "--json"], { env });
  expect((await logits("org/model")).stdout).toBe((await logits(small)).stdout);
  const info = await milora(["model", "info", "org/model", "--verify", "--json"], { env });
  expect(JSON.parse(info.stdout)).toMatchObject({ commit });
  expect((JSON.parse(info.stdout) as { verified: string[] }).verified).toHaveLength(files.length);
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
