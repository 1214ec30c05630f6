/** @file Attacks that have names, on a real server: each is refused in so many words, others are answered, and nothing of the inside is told. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Entry, entriesOf, tar } from "../../src/serving/adapters/testing.ts";
import { ask, makeAdapter, post, refusal, type Started, startServer } from "../../src/serving/http/testing.ts";

const directory = mkdtempSync(join(tmpdir(), "attacks-"));
let started: Started;
let red: string;
let runs: string;
const keys = { admin: "", acme: "" };
const bearer = (key: string): Record<string, string> => ({ authorization: `Bearer ${key}` });

beforeAll(async () => {
  red = await makeAdapter(directory, "lora", 1);
  runs = join(directory, "runs");
  mkdirSync(runs);
  started = await startServer(join(directory, "data"), { auth: "required", adapters: { red }, runs: [runs], chatTemplate: "alpaca" }); // biome-ignore format: one line
  const { store } = started.server.services;
  await store.tenants.create({ id: "acme" });
  keys.acme = (await store.keys.create({ tenant: "acme" })).secret;
  keys.admin = (await store.keys.create({ admin: true })).secret;
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

const chat = (body: object): Promise<Response> => post(`${started.url}/v1/chat/completions`, { model: "red", max_tokens: 1, ...body }, bearer(keys.acme)); // biome-ignore format: one line
const complete = (body: object | string): Promise<Response> =>
  post(`${started.url}/v1/completions`, typeof body === "string" ? body : { ...ask, ...body }, bearer(keys.acme));

async function upload(entries: readonly Entry[] | Buffer, name = "mine"): Promise<Response> {
  const body = new Uint8Array(Buffer.isBuffer(entries) ? entries : await tar(entries));
  const headers = { ...bearer(keys.acme), "content-type": "application/x-tar" };
  return fetch(`${started.url}/v1/adapters/${name}`, { method: "PUT", body, headers });
}

/** A path as it is, which `fetch` would tidy up. */
function get(
  path: string,
  headers: Record<string, string> = bearer(keys.admin),
  method = "GET",
): Promise<{ status: number; headers: NodeJS.Dict<string | string[]>; text: string }> {
  // biome-ignore format: one line
  const { hostname, port } = new URL(started.url);
  return new Promise((resolve, reject) => {
    request({ hostname, port, path, method, headers }, async (response) =>
      resolve({ status: response.statusCode!, headers: response.headers, text: await text(response) }),
    )
      .on("error", reject)
      .end();
  });
}

describe("expressions that never end", () => {
  test.each([
    ["target_modules", { target_modules: "(\\w*\\.?)*!" }],
    ["exclude_modules", { exclude_modules: "([a-z0-9_.]+)+#" }],
    ["rank_pattern", { rank_pattern: { "((\\w|\\.)*)*#": 2 } }],
    ["patterns without end", { target_modules: `(?:${"a|".repeat(100_000)}b)` }],
    ["alpha_pattern", { alpha_pattern: { "((\\w|\\.)*)*#": 2 } }],
  ])("%s of an uploaded adapter", async (_, change) => {
    const entries = entriesOf(red);
    const config = { ...JSON.parse(String(entries[0]!.content)), ...change };
    const refused = await upload([{ name: "adapter_config.json", content: JSON.stringify(config) }, entries[1]!]);
    const { error } = (await refused.json()) as { error: { code: string; message: string } };
    expect([refused.status, error.code]).toEqual([400, "CONFIG_INVALID"]);
    expect(error.message).toMatch(/take too long to match|more than 16384/);
    expect((await complete({})).status).toBe(200);
  });

  test("ranks by very many names are looked up at once", async () => {
    const entries = entriesOf(red);
    const names = Object.fromEntries(Array.from({ length: 15_000 }, (_, i) => [`layers.${i + 100}.q`, 4]));
    const config = { ...JSON.parse(String(entries[0]!.content)), rank_pattern: names, alpha_pattern: names };
    const content = JSON.stringify(config);
    expect((await upload([{ name: "adapter_config.json", content }, entries[1]!])).status).toBe(201);
  });

  test("a pattern of the usual kind goes on being read", async () => {
    const entries = entriesOf(red);
    const config = { ...JSON.parse(String(entries[0]!.content)), target_modules: ".*\\.(?:(?:q|k|v|o|gate|up|down)_proj)", rank_pattern: { "^nothing.*here$": 8 } }; // biome-ignore format: one line
    expect((await upload([{ name: "adapter_config.json", content: JSON.stringify(config) }, entries[1]!])).status).toBe(201); // biome-ignore format: one line
  });
});

describe("bodies that are small and become large", () => {
  const many = (piece: string, times: number): string => Array(times).fill(piece).join(",");
  test.each([
    ["token ids that are none", `{"model":"red","prompt":[${many("-1", 1_200_000)}]}`, 413, "PAYLOAD_TOO_LARGE"],
    ["prompts without end", `{"model":"red","prompt":[${many("[]", 600_000)}]}`, 413, "PAYLOAD_TOO_LARGE"],
    ["wrong token ids, a few less", `{"model":"red","prompt":[${many("-1", 900_000)}]}`, 400, "REQUEST_INVALID"],
    ["biases", `{"model":"red","prompt":"x","logit_bias":{${Array.from({ length: 200_000 }, (_, i) => `"${i}":1`).join(",")}}}`, 400, "REQUEST_INVALID"], // biome-ignore format: one line
    ["parts of arrays in arrays", `{"model":"red","prompt":${"[".repeat(100_000)}${"]".repeat(100_000)}}`, 400, "JSON_INVALID"], // biome-ignore format: one line
  ])("%s", async (_, body, status, code) => {
    const response = await complete(body);
    const answer = await response.clone().text();
    expect(await refusal(response)).toEqual([status, code]);
    expect(answer.length).toBeLessThan(2000);
  });

  test("parts of messages, and variables of templates", async () => {
    const part = { type: "text", text: "" };
    const parts = await chat({ messages: [{ role: "user", content: Array(5000).fill(part) }] });
    expect(await refusal(parts)).toEqual([400, "REQUEST_INVALID"]);
    const variables = Object.fromEntries(Array.from({ length: 10_000 }, (_, i) => [`v${i}`, 1]));
    const known = { messages: [{ role: "user", content: "Hi" }], chat_template_kwargs: variables };
    expect(await refusal(await chat(known))).toEqual([400, "REQUEST_INVALID"]);
  });

  test("of very many problems the first hundred are told, and how many there are", async () => {
    const response = await chat({ messages: Array(9000).fill({ role: "nobody" }) });
    const { error } = (await response.json()) as { error: { message: string; problems: string[] } };
    expect(response.status).toBe(400);
    expect(error.problems).toHaveLength(101);
    expect(error.problems.at(-1)).toBe("and 8900 more");
    expect(error.message).toContain("9000 problems");
    const long = await post(`${started.url}/admin/v1/tenants`, { id: "x".repeat(500_000), ["y".repeat(500_000)]: 1 }, bearer(keys.admin)); // biome-ignore format: one line
    expect(long.status).toBe(400);
    expect((await long.text()).length).toBeLessThan(20_000);
  });
});

describe("archives", () => {
  const config = { name: "adapter_config.json", content: "{}" };
  test("that unpack to far more than they are", async () => {
    const bomb = gzipSync(await tar([config, { name: "adapter_model.safetensors", content: Buffer.alloc(64 << 20) }]), { level: 9 }); // biome-ignore format: one line
    expect(bomb.length).toBeLessThan(200_000);
    expect(await refusal(await upload(bomb))).toEqual([413, "PAYLOAD_TOO_LARGE"]);
  });

  test("whose extended header is larger than any path", async () => {
    const pax = await tar([{ name: "x", pax: { comment: "x".repeat(6 << 20) } } as Entry]);
    expect(await refusal(await upload(pax))).toEqual([400, "ARCHIVE_INVALID"]);
  });

  test.each([
    "../../adapter_config.json",
    "/etc/adapter_config.json",
    "a/../../adapter_config.json",
    "a\\..\\adapter_config.json",
  ])("with the path %s", async (name) => {
    // biome-ignore format: one line
    expect(await refusal(await upload([{ ...config, name }]))).toEqual([400, "ARCHIVE_INVALID"]);
  });

  test("with links, and adapters whose fields would change what all objects have", async () => {
    const link = { name: "adapter_model.safetensors", type: "symlink", linkname: "/etc/passwd" } as Entry;
    expect(await refusal(await upload([config, link]))).toEqual([400, "ARCHIVE_INVALID"]);
    const [file, weights] = entriesOf(red);
    const polluted = `{"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}, ${String(file!.content).trim().slice(1)}`; // biome-ignore format: one line
    await upload([{ ...file!, content: polluted }, weights!]);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  test("leave nothing behind", () => {
    expect(readdirSync(join(directory, "data/adapters/.drafts"))).toEqual([]);
  });
});

describe("addresses", () => {
  test.each([
    "/v1/models/%ff%fe",
    "/v1/adapters/%",
    "/studio/v1/runs/%00",
    "/admin/v1/tenants/%00",
    "/admin/v1/usage?tenant=%00",
  ])("%s is refused as everything is", async (path) => {
    const { status, headers, text: body } = await get(path);
    expect([status, JSON.parse(body).error.code]).toEqual([400, "REQUEST_INVALID"]);
    expect(headers["x-content-type-options"]).toBe("nosniff");
    expect(headers["x-request-id"]).toMatch(/^req-/);
  });

  test("lead to no file but those they are for", async () => {
    writeFileSync(join(directory, "secret.json"), '{"secret": "told"}');
    const ways = ["../../package.json", "..%2f..%2f..%2fpackage.json", "%2e%2e/%2e%2e/package.json", "..%5c..%5cpackage.json", "assets/..%2f..%2findex.js", "%2fetc%2fpasswd"]; // biome-ignore format: one line
    for (const way of ways) {
      for (const top of ["/studio/", "/studio/v1/runs/", "/studio/v1/reproductions/", "/v1/models/", "/v1/adapters/"]) {
        const { text: body } = await get(top + way);
        expect(body).not.toMatch(/"dependencies"|root:|told|import /);
      }
    }
    const load = await post(`${started.url}/v1/load_lora_adapter`, { lora_name: "x", lora_path: red }, bearer(keys.admin)); // biome-ignore format: one line
    expect(await refusal(load)).toEqual([403, "FORBIDDEN"]);
  });

  test("and bodies with a NUL character reach no database", async () => {
    const made = await post(`${started.url}/admin/v1/keys`, { tenant: "\0" }, bearer(keys.admin));
    expect(await refusal(made)).toEqual([400, "REQUEST_INVALID"]);
    const unloaded = await post(`${started.url}/v1/unload_lora_adapter`, { lora_name: "\0" }, bearer(keys.admin));
    expect(await refusal(unloaded)).toEqual([400, "REQUEST_INVALID"]);
    expect((await complete({ prompt: "a\0b" })).status).toBe(200); // a prompt may hold one
  });
});

describe("heads", () => {
  test("that are too large, or have too many lines, are refused", async () => {
    const large = await get("/healthz", { "x-large": "x".repeat(20_000) }).catch((error: Error) => error);
    expect(large).toMatchObject({ status: 431 });
    const lines = Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`x-${i}`, "1"]));
    const many = await get("/healthz", lines).catch((error: Error) => error);
    expect(many instanceof Error || many.status === 431).toBe(true); // cut off while it was still sending
    expect((await get("/healthz")).status).toBe(200);
  });

  test("every answer says that it is to be taken for what it is, whoever asks for what", async () => {
    const stream = await complete({ stream: true });
    const answers: Pick<Response, "headers" | "text">[] = [stream, await complete({}), await complete("{"), await fetch(started.url), await fetch(`${started.url}/none`), await fetch(`${started.url}/docs`), await fetch(`${started.url}/studio/`), await fetch(`${started.url}/metrics`, { headers: bearer(keys.admin) }), await fetch(`${started.url}/openapi.json`)]; // biome-ignore format: one line
    for (const { headers } of answers) {
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("content-security-policy")).toMatch(/^default-src 'none';.*frame-ancestors 'none'/);
    }
    await Promise.all(answers.map((answer) => answer.text()));
  });
});

describe("the log", () => {
  test("has a line for each request, whatever the request calls itself, and no key in any", async () => {
    for (const id of ["a\tb", "x".repeat(300), '{"level":"error"}', "a b"]) await get("/v1/models", { ...bearer(keys.acme), "x-request-id": id }); // biome-ignore format: one line
    await get("/v1/models/%0d%0afake%20line", bearer(keys.acme));
    await get(`/v1/models?key=${keys.acme}`, bearer(keys.acme));
    await get("/v1/models", { authorization: keys.acme });
    await post(`${started.url}/studio/v1/session`, { key: `${keys.acme}x` });
    const label = await post(`${started.url}/admin/v1/keys`, { tenant: "acme", label: "a\nb" }, bearer(keys.admin));
    expect(label.status).toBe(400);
    const written = started.lines.map((line) => JSON.stringify(line)); // each was one line of JSON, or it would not be here
    expect(written.length).toBeGreaterThan(20);
    for (const key of Object.values(keys)) expect(written.join("\n")).not.toContain(key.slice(3, 30));
    expect(written.join("\n")).not.toContain("fake line");
    expect(started.lines.filter(({ level }) => level === "error")).toEqual([]);
  });

  test("an unexpected failure tells the client nothing, and the log where", async () => {
    const { store } = started.server.services;
    const { list } = store.tenants;
    Object.assign(store.tenants, { list: () => Promise.reject(new Error(`broken at ${directory}`)) });
    const { status, text: body } = await get("/admin/v1/tenants");
    Object.assign(store.tenants, { list });
    expect(status).toBe(500);
    expect(body).not.toContain("broken");
    expect(JSON.parse(body).error.code).toBe("INTERNAL_ERROR");
    expect(JSON.stringify(started.lines.at(-2))).toContain("broken at");
  });
});
