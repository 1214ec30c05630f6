/** @file The admin API over real HTTP: what it does, whom it refuses, and that tenants stay apart. */
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test } from "vitest";
import { packAdapter } from "../adapters/index.ts";
import { makeAdapter, type Started, scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
let started: Started;
let admin: string;

beforeAll(async () => {
  started = await startServer(`${directory}/data`, { auth: "required" });
  admin = (await started.server.services.store.keys.create({ admin: true })).secret;
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

interface Answer {
  readonly status: number;
  readonly body: Record<string, never> & { error?: { code: string; message: string } };
}

async function call(method: string, path: string, body?: unknown, key: string | undefined = admin): Promise<Answer> {
  const response = await fetch(`${started.url}${path}`, {
    method,
    headers: {
      ...(key !== "" && { authorization: `Bearer ${key}` }),
      ...(body !== undefined && { "content-type": "application/json" }),
    },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: (await response.json()) as Answer["body"] };
}

const at = (path: string) => `/admin/v1/${path}`;

async function tenantWithKey(id: string): Promise<string> {
  expect((await call("POST", at("tenants"), { id })).status).toBe(201);
  const { status, body } = await call("POST", at("keys"), { tenant: id, label: "test" });
  expect(status).toBe(201);
  return body.secret!;
}

test("every route asks for a key of the role admin", async () => {
  const tenant = await tenantWithKey("refused");
  const document = (await (await fetch(`${started.url}/openapi.json`)).json()) as {
    paths: Record<string, Record<string, { summary?: string; tags?: string[] }>>;
  };
  const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
    path.startsWith("/admin/v1/") ? Object.entries(methods).map(([method, about]) => ({ path, method, about })) : [],
  );
  expect(routes.length).toBeGreaterThan(15);
  for (const { path, method, about } of routes) {
    expect(about.summary).toMatch(/^[A-Z]/);
    expect(about.tags).toEqual(["admin"]);
    const url = path.replace(/\{\w+\}/g, "refused");
    expect(await call(method.toUpperCase(), url, undefined, "")).toMatchObject({ status: 401, body: { error: { code: "UNAUTHENTICATED" } } }); // biome-ignore format: one line
    expect(await call(method.toUpperCase(), url, undefined, "mk_wrong")).toMatchObject({ status: 401 });
    expect(await call(method.toUpperCase(), url, undefined, tenant)).toMatchObject({ status: 403, body: { error: { code: "FORBIDDEN" } } }); // biome-ignore format: one line
  }
  expect((await call("GET", at("tenants/refused"))).status).toBe(200); // nothing of that was done
});

test("tenants: made, changed, read, removed; 404 and 409 and 400", async () => {
  const made = await call("POST", at("tenants"), { id: "acme", weight: 2, limits: { tokensPerDay: 100 } });
  expect(made).toMatchObject({
    status: 201,
    body: { id: "acme", name: "acme", weight: 2, limits: { tokensPerDay: 100 } },
  });
  expect(await call("POST", at("tenants"), { id: "acme" })).toMatchObject({ status: 409, body: { error: { code: "TENANT_EXISTS" } } }); // biome-ignore format: one line
  const changed = await call("PATCH", at("tenants/acme"), {
    limits: { tokensPerDay: null, maxConcurrent: 3 },
    disabled: true,
  });
  expect(changed).toMatchObject({ status: 200, body: { weight: 2, disabled: true } });
  expect(changed.body.limits).toEqual({ maxConcurrent: 3 });
  expect((await call("GET", at("tenants/acme"))).body).toEqual(changed.body);
  expect((await call("GET", at("tenants/acme/quotas"))).body).toMatchObject({
    limits: { maxConcurrent: 3 },
    running: 0,
    tokensToday: 0,
  });
  expect((await call("DELETE", at("tenants/acme"))).body).toEqual({ id: "acme", removed: true });
  for (const [method, path, body] of [
    ["GET", "tenants/acme"],
    ["GET", "tenants/admin"],
    ["GET", "tenants/acme/quotas"],
    ["PATCH", "tenants/acme", { weight: 1 }],
    ["DELETE", "tenants/acme"],
    ["POST", "keys", { tenant: "acme" }],
    ["DELETE", "keys/key_0"],
    ["GET", "adapters?tenant=acme"],
    ["DELETE", "adapters/none"],
    ["PUT", "adapters/none/pin"],
    ["PUT", "adapters/none/grants/acme?tenant=refused"],
    ["DELETE", "adapters/none/grants/acme?tenant=refused"],
  ] as const) {
    expect({ path, ...(await call(method, at(path), body)) }).toMatchObject({ path, status: 404 });
  }
  for (const [method, path, body, about] of [
    ["POST", "tenants", { id: "A B", weight: -1 }, "2 problems"],
    ["POST", "tenants", { id: "x", secret: 1 }, "secret"],
    ["POST", "tenants", undefined, "expected object"],
    ["PATCH", "tenants/refused", { limits: { tokensPerDay: "9" } }, "limits.tokensPerDay"],
    ["POST", "keys", {}, "either tenant or admin"],
    ["POST", "keys", { tenant: "refused", admin: true }, "either tenant or admin"],
    ["POST", "keys", { tenant: "refused", expiresAt: "soon" }, "expiresAt"],
    ["POST", "keys", { tenant: "refused", expiresAt: "2020-01-01" }, "expired"],
    ["GET", "usage?by=colour", undefined, "by"],
    ["GET", "usage?from=2026-02-01&to=2026-01-01", undefined, "before"],
    ["PUT", "adapters/none/grants/refused", undefined, "tenant"],
    ["PUT", "adapters/none", undefined, "body"],
  ] as const) {
    const answer = await call(method, at(path), body);
    expect({ path, ...answer }).toMatchObject({ path, status: 400 });
    expect(answer.body.error!.message).toContain(about);
  }
});

test("keys: the secret is told once, and revoked keys are refused with the next request", async () => {
  const secret = await tenantWithKey("keyed");
  const listed = (await call("GET", at("keys?tenant=keyed"))).body.keys as unknown as { id: string; prefix: string }[];
  expect(listed).toMatchObject([{ tenant: "keyed", label: "test", role: "tenant", prefix: secret.slice(0, 9) }]);
  expect(JSON.stringify(await call("GET", at("keys")))).not.toContain(secret.slice(9));
  expect((await call("GET", "/v1/models", undefined, secret)).status).toBe(200);
  expect((await call("DELETE", at(`keys/${listed[0]!.id}`))).body.revokedAt).not.toBeNull();
  expect((await call("GET", "/v1/models", undefined, secret)).status).toBe(401);
  const other = (await call("POST", at("keys"), { tenant: "keyed", expiresAt: "2999-01-01T00:00:00+02:00" })).body;
  expect(other.key).toMatchObject({ expiresAt: "2998-12-31T22:00:00.000Z" });
  await call("PATCH", at("tenants/keyed"), { disabled: true });
  expect((await call("GET", "/v1/models", undefined, other.secret)).status).toBe(401);
  expect(started.lines.map((line) => JSON.stringify(line)).join()).not.toContain(secret.slice(9));
});

test("no tenant sees, uses, replaces or removes what is another's", async () => {
  const ann = await tenantWithKey("ann");
  const bob = await tenantWithKey("bob");
  const source = await makeAdapter(directory, "lora", 1);
  const archive = new Uint8Array(await buffer(Readable.from(await packAdapter(source))));
  const put = (path: string, key: string) =>
    fetch(`${started.url}${path}`, { method: "PUT", body: archive, headers: { authorization: `Bearer ${key}`, "content-type": "application/x-tar" } }); // biome-ignore format: one line
  const installed = await put(at("adapters/secret?tenant=ann"), admin);
  expect(installed.status).toBe(201);
  const { digest } = (await installed.json()) as { digest: string };
  expect((await put(at("adapters/secret?tenant=nobody"), admin)).status).toBe(404);
  const ask = (model: string, key: string) =>
    call("POST", "/v1/completions", { model, prompt: "Hello", max_tokens: 2 }, key);
  expect((await ask("secret", ann)).status).toBe(200);
  const told = (answer: Answer, name: string) => JSON.stringify(answer).replaceAll(name, "NAME");
  for (const model of ["secret", "ann/secret", "tiny-llama:ann/secret", "bob/secret"]) {
    const none = model.replace("secret", "nothng");
    expect((await ask(model, bob)).status).toBe(404);
    expect(told(await ask(model, bob), model)).toBe(told(await ask(none, bob), none));
    const path = `/v1/models/${encodeURIComponent(model)}`;
    expect(told(await call("GET", path, undefined, bob), model)).toBe(told(await call("GET", `/v1/models/${encodeURIComponent(none)}`, undefined, bob), none)); // biome-ignore format: one line
  }
  for (const path of ["/v1/models", "/v1/adapters"]) {
    const seen = JSON.stringify((await call("GET", path, undefined, bob)).body);
    expect(seen).not.toContain("secret");
    expect(seen).not.toContain(digest);
  }
  expect((await call("DELETE", "/v1/adapters/secret", undefined, bob)).status).toBe(404);
  expect((await put("/v1/adapters/secret", bob)).status).toBe(201); // bob's own of that name
  expect((await call("DELETE", "/v1/adapters/secret", undefined, bob)).status).toBe(200);
  expect((await ask("secret", ann)).status).toBe(200);

  // What is granted can be used under its owner's name, and no longer once it is taken back.
  expect((await call("PUT", at("adapters/secret/grants/bob?tenant=ann"))).status).toBe(200);
  expect((await call("GET", at("grants?owner=ann"))).body.grants).toMatchObject([
    { owner: "ann", name: "secret", tenant: "bob" },
  ]);
  expect((await ask("ann/secret", bob)).status).toBe(200);
  expect((await ask("secret", bob)).status).toBe(404);
  expect((await call("DELETE", "/v1/adapters/secret", undefined, bob)).status).toBe(404);
  expect((await call("DELETE", at("adapters/secret/grants/bob?tenant=ann"))).status).toBe(200);
  expect((await ask("ann/secret", bob)).status).toBe(404);

  const used = (await call("GET", at("usage?by=tenant&from=2026-01-01"))).body.usage as unknown as {
    tenant: string;
    requests: number;
  }[];
  expect(used.find(({ tenant }) => tenant === "ann")!.requests).toBe(2);
  expect(used.find(({ tenant }) => tenant === "bob")!.requests).toBe(1);
  const annsDay = (await call("GET", at("tenants/ann/quotas"))).body;
  expect(annsDay).toMatchObject({ running: 0, reserved: 0 });
  expect((await call("DELETE", at("tenants/ann"))).body.error!.code).toBe("TENANT_NOT_EMPTY");
  const pinned = () => started.server.services.registry.all().then((all) => all.map((row) => row.pinned));
  await call("PUT", at("adapters/secret/pin?tenant=ann"));
  expect(await pinned()).toEqual([true]);
  await call("DELETE", at("adapters/secret/pin?tenant=ann"));
  expect(await pinned()).toEqual([false]);
  expect((await call("GET", at("adapters"))).body.adapters).toMatchObject([{ owner: "ann", name: "secret", digest }]);
  expect((await call("GET", at("adapters?tenant=bob"))).body.adapters).toEqual([]);
  expect((await call("DELETE", at("adapters/secret?tenant=ann"))).body).toMatchObject({ inFlight: 0 });
  expect((await ask("secret", ann)).status).toBe(404);
});

test("quotas answer 429 with Retry-After, and other tenants go on", async () => {
  const small = await tenantWithKey("small");
  const other = await tenantWithKey("other");
  await call("PATCH", at("tenants/small"), { limits: { requestsPerMinute: 1 } });
  const ask = (key: string) =>
    fetch(`${started.url}/v1/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify({ model: "tiny-llama", prompt: "Hello", max_tokens: 1 }),
    });
  expect((await ask(small)).status).toBe(200);
  const refused = await ask(small);
  expect(refused.status).toBe(429);
  expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(50);
  expect(((await refused.json()) as Answer["body"]).error!.code).toBe("QUOTA_EXCEEDED");
  expect((await ask(other)).status).toBe(200);
});
