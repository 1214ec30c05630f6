/** @file What a real server tells who operates it: now, lately, its errors, and adapters in and out of memory. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test } from "vitest";
import { packAdapter } from "../adapters/index.ts";
import type { ServerErrorEntry, ServerHistory, ServerStatus } from "../studio/types.ts";
import { ask, makeAdapter, post, type Started, scratch, startServer, until } from "./testing.ts";

const { directory, remove } = scratch();
let started: Started;
let key: string;
let tenant: string;

beforeAll(async () => {
  started = await startServer(`${directory}/data`, { auth: "required" });
  const { store } = started.server.services;
  key = (await store.keys.create({ admin: true })).secret;
  await store.tenants.create({ id: "acme" });
  tenant = (await store.keys.create({ tenant: "acme" })).secret;
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` });

async function admin<T = Record<string, unknown>>(method: string, path: string): Promise<{ status: number; body: T }> {
  const response = await fetch(`${started.url}/admin/v1/${path}`, { method, headers: bearer(key) });
  return { status: response.status, body: (await response.json()) as T };
}

const archiveOf = async (path: string): Promise<Uint8Array<ArrayBuffer>> =>
  new Uint8Array(await buffer(Readable.from(await packAdapter(path))));

async function upload(path: string, archive: Uint8Array<ArrayBuffer>): Promise<{ status: number; body: never }> {
  const headers = { ...bearer(key), "content-type": "application/x-tar" };
  const response = await fetch(`${started.url}${path}`, { method: "PUT", body: archive, headers });
  return { status: response.status, body: (await response.json()) as never };
}

test("status: what runs, of whom, and what memory it takes", async () => {
  const before = (await admin<ServerStatus>("GET", "status")).body;
  expect(before).toMatchObject({ draining: false, waiting: 0, running: 0, rows: 0, adapters: 0, tenants: [] });
  expect(before).toMatchObject({ limits: { maxBatch: 16, maxWaiting: 256 }, residentLimitBytes: 1024 ** 3 });
  expect(before.rssBytes).toBeGreaterThan(10_000_000);
  let during = before;
  const traffic = (async () => {
    const long = { ...ask, max_tokens: 400, ignore_eos: true };
    while (during.running === 0) await post(`${started.url}/v1/completions`, long, bearer(tenant));
  })();
  await until(async () => {
    during = (await admin<ServerStatus>("GET", "status")).body;
    return during.running > 0;
  });
  await traffic;
  expect(during).toMatchObject({ running: 1, rows: 1, adapters: 1, waiting: 0 });
  expect(during.tenants).toEqual([{ tenant: "acme", waiting: 0, running: 1 }]);
  expect(during.kvTokens).toBeGreaterThan(400);
  await until(async () => (await admin<ServerStatus>("GET", "status")).body.running === 0);
});

test("history: tokens, requests and errors of the seconds that they came in", async () => {
  const sums = async () => {
    const { body } = await admin<ServerHistory>("GET", "history");
    const total = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);
    const { tokens, requests, errors } = body;
    return { tokens: total(tokens), requests: total(requests), errors: total(errors), body };
  };
  // What earlier requests gave is told before this one's.
  await until(async () => {
    const { running, waiting } = (await admin<ServerStatus>("GET", "status")).body;
    return running + waiting === 0;
  });
  const idle = Math.floor(Date.now() / 1000);
  await until(async () => {
    const { from, waiting } = (await sums()).body;
    return from + waiting.length > idle;
  });
  const before = await sums();
  const from = Math.floor(Date.now() / 1000);
  expect((await post(`${started.url}/v1/completions`, ask, bearer(tenant))).status).toBe(200);
  expect((await post(`${started.url}/v1/completions`, { ...ask, model: "none" }, bearer(tenant))).status).toBe(404);
  await until(async () => (await sums()).requests >= before.requests + 2);
  const after = await sums();
  expect(after.tokens - before.tokens).toBe(ask.max_tokens);
  expect(after.errors - before.errors).toBe(1);
  const { body } = after;
  const points = body.waiting.length;
  expect(body.from + points).toBeGreaterThanOrEqual(from);
  for (const [name, column] of Object.entries(body)) {
    if (name !== "from") expect({ name, length: (column as unknown[]).length }).toEqual({ name, length: points });
  }
  expect(body.firstTokenP50.filter((ms) => ms !== null).every((ms) => ms > 0)).toBe(true);
  expect(body.betweenTokensP95.some((ms) => ms !== null)).toBe(true);
  expect((await admin<ServerHistory>("GET", "history?seconds=1")).body.waiting).toHaveLength(1);
  for (const seconds of ["0", "3601", "many"]) {
    expect(await admin("GET", `history?seconds=${seconds}`)).toMatchObject({ status: 400, body: { error: { param: "seconds" } } }); // biome-ignore format: one line
  }
});

test("errors: which route, code, tenant and request, and nothing that was sent", async () => {
  const headers = { ...bearer(tenant), "x-request-id": "mine-7" };
  await post(`${started.url}/v1/completions`, { ...ask, prompt: "my secret", model: "hush" }, headers);
  await fetch(`${started.url}/v1/models`, { headers: bearer("mk_hidden") });
  await fetch(`${started.url}/not/there?q=hush`, { headers: bearer(tenant) });
  const read = async () => (await admin<{ errors: ServerErrorEntry[] }>("GET", "errors")).body.errors;
  await until(async () => (await read())[0]?.code === "ROUTE_NOT_FOUND");
  const errors = await read();
  expect(errors[0]).toMatchObject({ method: "GET", status: 404, tenant: "acme" });
  expect(errors[1]).toMatchObject({ route: "/v1/models", status: 401, code: "UNAUTHENTICATED", tenant: null });
  const { at, ...third } = errors[2]!;
  expect(third).toEqual({
    ...{ requestId: "mine-7", method: "POST", route: "/v1/completions", status: 404 },
    ...{ code: "MODEL_NOT_FOUND", tenant: "acme", adapter: null },
  });
  expect(Math.abs(Date.parse(at) - Date.now())).toBeLessThan(60_000);
  expect(JSON.stringify(errors)).not.toMatch(/secret|hush|mk_|hidden/);
});

test("an adapter is loaded and dropped; one that is pinned stays", async () => {
  const archive = await archiveOf(await makeAdapter(directory, "lora", 3));
  for (const name of ["mine", "twin"]) {
    expect((await upload(`/admin/v1/adapters/${name}?tenant=acme`, archive)).status).toBe(201);
  }
  const resident = async () => (await admin<ServerStatus>("GET", "status")).body.residentAdapters;
  const path = (name: string, what: string) => `adapters/${name}/${what}?tenant=acme`;
  expect(await resident()).toBe(0);
  expect(await admin("PUT", path("mine", "resident"))).toEqual({
    status: 200,
    body: { owner: "acme", name: "mine", resident: true, inFlight: 0 },
  });
  expect(await resident()).toBe(1);
  expect((await admin("DELETE", path("mine", "resident"))).body).toMatchObject({ resident: false, inFlight: 0 });
  expect(await resident()).toBe(0);
  expect((await admin("DELETE", path("mine", "resident"))).status).toBe(200); // nothing to do

  await admin("PUT", path("mine", "pin"));
  for (const [name, why] of [
    ["mine", "is pinned; unpin it first"],
    ["twin", "same files as one that is pinned"],
  ] as const) {
    const refused = await admin<{ error: { code: string; message: string } }>("DELETE", path(name, "resident"));
    expect(refused).toMatchObject({ status: 409, body: { error: { code: "ADAPTER_PINNED" } } });
    expect(refused.body.error.message).toContain(why);
  }
  expect(await resident()).toBe(1);
  await admin("DELETE", path("mine", "pin"));
  expect((await admin("DELETE", path("twin", "resident"))).status).toBe(200);
  expect(await resident()).toBe(0);
  for (const method of ["PUT", "DELETE"]) {
    const gone = await admin(method, "adapters/mine/resident"); // everybody's of this name
    expect(gone).toMatchObject({ status: 404, body: { error: { code: "ADAPTER_NOT_FOUND" } } });
  }
});

test("a refused upload lists every problem, and leaves nothing behind", async () => {
  const path = await makeAdapter(directory, "lora", 4);
  const file = join(path, "adapter_config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
  const refused = async (change: object) => {
    writeFileSync(file, JSON.stringify({ ...config, ...change }));
    return (await upload("/admin/v1/adapters/broken", await archiveOf(path))) as {
      status: number;
      body: { error: { code: string; message: string; problems?: string[] } };
    };
  };
  const shapes = await refused({ r: 2 });
  expect(shapes).toMatchObject({ status: 400, body: { error: { code: "ADAPTER_MISMATCH" } } });
  const { message, problems } = shapes.body.error;
  expect(problems!.length).toBeGreaterThan(2);
  for (const problem of problems!) {
    expect(problem).toMatch(/lora_[AB]/);
    expect(message).toContain(problem);
  }
  const fields = await refused({ r: -1, lora_alpha: "much" });
  expect(fields).toMatchObject({ status: 400, body: { error: { code: "CONFIG_INVALID" } } });
  expect(fields.body.error.problems).toEqual([expect.stringMatching(/^r: /), expect.stringMatching(/^lora_alpha: /)]);
  const method = await refused({ peft_type: "VERA" });
  expect(method).toMatchObject({ status: 400, body: { error: { code: "METHOD_UNKNOWN" } } });
  expect(method.body.error.message).toMatch(/^adapter_config\.json: peft_type "VERA" is not supported; there are /);
  const { adapters } = (await admin<{ adapters: { name: string }[] }>("GET", "adapters")).body;
  expect(adapters.map(({ name }) => name)).not.toContain("broken");
});
