/** @file `milora adapters install` and what is done to installed adapters, in a data directory. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { openInstalled } from "../../src/cli/adapters/installed.ts";
import { AdminClient } from "../../src/cli/admin.ts";
import { fixture, milora, temporary } from "./milora.ts";

const model = fixture("backbones/llama-gqa");
const lora = fixture("lora/qv-suffixes");

/** Runs `milora adapters …` in a data directory; the JSON of its result. */
async function adapters(data: string, ...args: string[]): Promise<unknown> {
  const { code, stdout, stderr } = await milora(["adapters", ...args, "--data", data, "--json"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return JSON.parse(stdout);
}

async function refused(args: string[], env: Record<string, string> = {}): Promise<string> {
  const { code, stdout, stderr } = await milora(["adapters", ...args], { env });
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toMatch(/^error: [^\n]+\n$/);
  return stderr;
}

test("install, list, pin, remove", async () => {
  const data = join(temporary(), "data");
  expect(await refused(["install", lora, "--name", "a", "--data", data])).toContain("--model");
  const installed = await adapters(data, "install", lora, "--name", "a", "--model", model);
  expect(installed).toMatchObject({ owner: null, name: "a", method: "lora", rank: 4, parameters: 1344, skipped: [] });
  const { digest } = installed as { digest: string };
  const archive = join(temporary(), "b.tar.gz");
  execFileSync("tar", ["czf", archive, "-C", lora, "."]);
  // The backbone is known now.
  expect(await adapters(data, "install", archive, "--name", "b")).toMatchObject({ digest, skipped: ["expected.json"] });
  await adapters(data, "pin", "b");
  expect(await adapters(data, "list")).toMatchObject([
    { name: "a", digest, pinned: false },
    { name: "b", digest, pinned: true },
  ]);
  expect(readdirSync(join(data, "adapters")).filter((name) => /^[0-9a-f]{64}$/.test(name))).toEqual([digest]);
  const { stdout } = await milora(["adapters", "list", "--data", data]);
  expect(stdout).toMatch(new RegExp(`^b +lora +4 .* yes .* ${digest.slice(0, 12)}$`, "m"));
  expect(await adapters(data, "remove", "a")).toEqual({ owner: null, name: "a", inFlight: 0 });
});

test("bad input is one line, and nothing is installed", async () => {
  const data = join(temporary(), "data");
  expect(await refused(["remove", "a/b/c", "--data", data])).toContain("TENANT/NAME");
  const wrong = ["install", lora, "--model", fixture("backbones/llama-headdim"), "--name", "a", "--data", data];
  expect(await refused(wrong)).toMatch(/does not fit its config and this backbone: \d+ problems: .*lora_A/);
  // The rest without a process for each.
  await using installed = await openInstalled({ data });
  const name = (text: string, owner: string | null = null) => ({ owner, name: text });
  const install = (source: string, as = name("a")) => installed.install(source, as, model);
  await expect(install(lora, name("llama-gqa"))).rejects.toThrow("stands for the backbone");
  await expect(install(lora, name("a", "nobody"))).rejects.toThrow("nobody");
  await expect(install(join(lora, "expected.json"))).rejects.toThrow("tar czf");
  await expect(install("no/such")).rejects.toThrow("no such file");
  await expect(installed.remove(name("a"))).rejects.toThrow("no such adapter");
  await expect(installed.pin(name("a", "t"), true)).rejects.toThrow("no such adapter");
  await expect(installed.grant(name("a"), "t", true)).rejects.toThrow("everybody's");
  await expect(installed.grant(name("a", "t"), "u", true)).rejects.toMatchObject({ exitCode: 2 });
  expect(await installed.list(undefined)).toEqual([]);
  expect(readdirSync(join(data, "adapters", ".drafts"))).toEqual([]);
  expect(existsSync(join(data, "adapters", "backbone.json"))).toBe(false);
});

test("a server is asked with a key, and one that does not answer is said so", async () => {
  const server = ["--server", "http://127.0.0.1:9"];
  expect(() => new AdminClient("http://127.0.0.1:9", {})).toThrow("MILORA_ADMIN_KEY");
  expect(() => new AdminClient("nonsense", { MILORA_ADMIN_KEY: "k" })).toThrow("no URL");
  expect(await refused(["list", "--data", "x", ...server])).toContain("cannot be used with");
  expect(await refused(["list", ...server], { MILORA_ADMIN_KEY: "k" })).toContain("127.0.0.1:9 does not answer");
});
