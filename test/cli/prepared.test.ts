/** @file A model that was prepared in one form is used in that form by every command; a flag that says otherwise is refused. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ask, makeAdapter, post, startServer } from "../../src/serving/http/testing.ts";
import { milora, temporary, tiny } from "./milora.ts";

const DATA = "assets/data/authors/dev.jsonl";
const directory = mkdtempSync(join(tmpdir(), "milora-prepared-"));
const model = join(directory, "int4");

beforeAll(async () => {
  const made = await milora(["model", "prepare", tiny, "--weights", "int4", "--output", model]);
  expect(made).toMatchObject({ code: 0 });
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const train = (output: string, ...more: string[]) => [
  ...["train", "--model", model, "--train", DATA, "--dev", "0.05", "--method", "milora", "--set", "adapter.r=2"],
  ...["--quick", "--output", output, ...more],
];

test("train holds it as it was prepared, says so in the run's config, and goes on from there", async () => {
  const output = join(temporary(), "run");
  expect(await milora(train(output))).toMatchObject({ code: 0 });
  const config = () => JSON.parse(readFileSync(join(output, "config.json"), "utf8")) as { weights: string };
  expect(config().weights).toBe("int4");
  const named = join(temporary(), "named");
  expect(await milora(train(named, "--weights", "int4"))).toMatchObject({ code: 0 });
  const weights = (run: string) => readFileSync(join(run, "best/adapter_model.safetensors"));
  expect(weights(output).equals(weights(named))).toBe(true);
  expect(await milora(["train", "--resume", "--output", output])).toMatchObject({ code: 0 });
  const several = join(temporary(), "several");
  expect(await milora(train(several, "--seeds", "0,1"))).toMatchObject({ code: 0 });
});

test("a model that was not prepared is float32, and the run's config says that too", async () => {
  const output = join(temporary(), "run");
  expect(await milora(train(output, "--model", tiny))).toMatchObject({ code: 0 });
  expect(JSON.parse(readFileSync(join(output, "config.json"), "utf8"))).toMatchObject({ weights: "float32" });
});

const others: readonly (readonly [string, readonly string[]])[] = [
  ["generate", ["generate", "--prompt", "The cell", "--max-new-tokens", "2"]],
  ["logits", ["logits", "--tokens", "1,5,7"]],
  ["eval", ["eval", "--data", DATA, "--limit", "2", "--max-new-tokens", "2"]],
  ["eval --tasks", ["eval", "--tasks", "subjects", "--limit", "2", "--max-new-tokens", "2"]],
];

test.each(others)("%s uses it as it was prepared", async (_, args) => {
  const ran = await milora([...args, "--model", model, "--json"]);
  expect(ran).toMatchObject({ code: 0 });
  expect(await milora([...args, "--model", model, "--weights", "int4", "--json"])).toMatchObject({
    code: 0,
    stdout: args[0] === "logits" ? ran.stdout : expect.any(String),
  });
});

test("a server answers with it, and explores routes on it", async () => {
  const adapters = { routed: await makeAdapter(temporary(), "milora", 1) };
  await using server = await startServer(temporary(), { model, adapters });
  const name = "int4"; // the last part of its path
  const answered = await post(`${server.url}/v1/completions`, { ...ask, model: name });
  expect(answered.status).toBe(200);
  const explored = await post(`${server.url}/studio/v1/explore`, {
    ...{ adapters: ["routed"], prompt: "The cell", format: "raw" },
  });
  expect([explored.status, (await explored.json()) as unknown]).toMatchObject([200, { routes: [{}] }]);
});

test.each([
  ...others,
  ["train", train("unused").filter((part) => part !== model && part !== "--model")] as const,
  ["serve", ["serve"]] as const,
])("%s refuses another form by name", async (_, args) => {
  const { code, stderr } = await milora([...args, "--model", model, "--weights", "float32"]);
  expect([code, stderr]).toEqual([2, expect.stringMatching(/prepared as int4.*\(weights: int4\)/)]);
});
