/** @file Tests of signing in to the studio: who gets in, for how long, and whom else's pages get nothing. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ask, makeAdapter, post, refusal, type Started, scratch, startServer } from "../http/testing.ts";
import { Attempts } from "./attempts.ts";
import { SESSION_MS, Sessions } from "./sessions.ts";
import type { StudioSession } from "./types.ts";

const { directory, remove } = scratch();
const OWN = { "x-milora-studio": "1" };
let closed: Started;
let open: Started;
let admin: string;
let ann: string;
let bob: string;

beforeAll(async () => {
  [closed, open] = await Promise.all([
    startServer(`${directory}/closed`, { auth: "required", runs: [directory] }),
    startServer(`${directory}/open`),
  ]);
  const { store, registry } = closed.server.services;
  const adapter = await makeAdapter(directory, "lora", 1);
  for (const id of ["ann", "bob"]) {
    await store.tenants.create({ id });
    await registry.install({ directory: adapter }, { owner: id, name: "own" });
  }
  admin = (await store.keys.create({ admin: true })).secret;
  ann = (await store.keys.create({ tenant: "ann" })).secret;
  bob = (await store.keys.create({ tenant: "bob" })).secret;
});

afterAll(async () => {
  await Promise.all([closed[Symbol.asyncDispose](), open[Symbol.asyncDispose]()]);
  remove();
});

const session = (url: string): string => `${url}/studio/v1/session`;

/** Signs in. @returns the cookie as a browser sends it */
async function signIn(key: string, url = closed.url): Promise<string> {
  const response = await post(session(url), { key });
  expect(response.status).toBe(200);
  return cookieOf(response);
}

function cookieOf(response: Response): string {
  const [cookie, ...more] = response.headers.getSetCookie();
  expect(more).toEqual([]);
  return cookie!.split(";")[0]!;
}

async function shown(response: Response): Promise<StudioSession> {
  expect(response.status).toBe(200);
  return (await response.json()) as StudioSession;
}

const get = (path: string, headers: Record<string, string>): Promise<Response> => fetch(closed.url + path, { headers });

describe("signing in", () => {
  test("a key opens a session, which says who one is; the cookie is for no script and no other site", async () => {
    const stranger = await shown(await get("/studio/v1/session", {}));
    expect(stranger).toMatchObject({ signedIn: false, byKey: false, role: null, tenant: null, runs: false });
    expect(stranger.version).toMatch(/^\d+\.\d+\.\d+$/);
    const response = await post(session(closed.url), { key: `  ${admin}\n` });
    const [cookie] = response.headers.getSetCookie();
    expect(cookie).toMatch(/^milora_studio=[A-Za-z0-9_-]+; Max-Age=43200; Path=\/; HttpOnly; SameSite=Strict$/);
    expect(cookie).not.toContain(admin);
    expect(Buffer.from(cookie!.slice(14).split(";")[0]!, "base64url").toString("latin1")).not.toContain(admin);
    expect(response.headers.get("cache-control")).toBe("no-store");
    const server = { base: "tiny-llama", context: 2048, layers: 4, chat: false };
    const expected = { signedIn: true, byKey: true, role: "admin", tenant: "admin", runs: true };
    expect(await shown(response)).toMatchObject(expected);
    const back = await shown(await get("/studio/v1/session", { cookie: cookieOf2(cookie!) }));
    expect(back).toMatchObject(expected);
    expect(Object.keys(back.server!)).toEqual(Object.keys(server));
  });

  const cookieOf2 = (cookie: string): string => cookie.split(";")[0]!;

  test("behind a proxy that ends TLS the cookie is for https only", async () => {
    const response = await post(session(closed.url), { key: ann }, { "x-forwarded-proto": "https, http" });
    expect(response.headers.getSetCookie()[0]).toMatch(/; HttpOnly; Secure; SameSite=Strict$/);
  });

  test("the cookie is as good as the key, everywhere; a tenant's opens nothing of administrators", async () => {
    const cookie = await signIn(ann);
    expect(await shown(await get("/studio/v1/session", { cookie }))).toMatchObject({
      ...{ signedIn: true, role: "tenant", tenant: "ann", runs: false },
    });
    expect((await get("/v1/models", { cookie })).status).toBe(200);
    const answered = await post(`${closed.url}/v1/completions`, { ...ask, model: "own" }, { cookie, ...OWN });
    expect(answered.status).toBe(200);
    for (const path of [
      "/admin/v1/tenants",
      "/admin/v1/status",
      "/studio/v1/runs",
      "/studio/v1/reproductions",
      "/metrics",
    ]) {
      expect(await refusal(await get(path, { cookie }))).toEqual([403, "FORBIDDEN"]);
    }
    expect((await get("/admin/v1/tenants", { cookie: await signIn(admin) })).status).toBe(200);
    const used = await closed.server.services.store.usage.report({ tenant: "ann" });
    expect(used).toMatchObject([{ tenant: "ann", adapter: "ann/own", requests: 1 }]);
  });

  test("a key in the head counts before the cookie", async () => {
    const headers = { cookie: await signIn(admin), authorization: `Bearer ${ann}` };
    expect(await refusal(await get("/admin/v1/tenants", headers))).toEqual([403, "FORBIDDEN"]);
    const wrong = { cookie: headers.cookie, authorization: "Bearer nonsense" };
    expect(await refusal(await get("/v1/models", wrong))).toEqual([401, "UNAUTHENTICATED"]);
  });

  test("an administrator may use any tenant's adapter by owner/name; tenants only their own", async () => {
    const [cookie, others] = [await signIn(admin), await signIn(bob)];
    const complete = (cookie: string, model: string) =>
      post(`${closed.url}/v1/completions`, { ...ask, model }, { cookie, ...OWN });
    expect((await complete(cookie, "ann/own")).status).toBe(200);
    expect(await refusal(await complete(others, "ann/own"))).toEqual([404, "MODEL_NOT_FOUND"]);
    expect(await refusal(await complete(cookie, "ann/none"))).toEqual([404, "MODEL_NOT_FOUND"]);
    const used = await closed.server.services.store.usage.report({ tenant: "admin" });
    expect(used).toMatchObject([{ tenant: "admin", adapter: "ann/own", requests: 1 }]);
  });

  test("an open server needs none; who signs in all the same is who the key says", async () => {
    expect(await shown(await fetch(session(open.url)))).toMatchObject({
      ...{ signedIn: true, byKey: false, role: "admin", tenant: "default", runs: false },
    });
    await using talkative = await startServer(`${directory}/talkative`, { auth: "open" });
    const { store } = talkative.server.services;
    const { secret } = await store.keys.create({ admin: true });
    expect(await shown(await fetch(session(talkative.url)))).toMatchObject({ signedIn: true, role: "tenant" });
    const cookie = await signIn(secret, talkative.url);
    expect((await fetch(`${talkative.url}/admin/v1/tenants`, { headers: { cookie } })).status).toBe(200);
  });
});

describe("getting out", () => {
  test("signing out takes the cookie away", async () => {
    const cookie = await signIn(ann);
    const response = await fetch(session(closed.url), { method: "DELETE", headers: { cookie, ...OWN } });
    expect(response.headers.getSetCookie()[0]).toMatch(/^milora_studio=; Max-Age=0; Path=\//);
    expect(await shown(response)).toMatchObject({ signedIn: false, role: null });
  });

  test("a key that is revoked, and one whose tenant is disabled, is out with the next request", async () => {
    const { keys, tenants } = closed.server.services.store;
    const made = await keys.create({ tenant: "bob" });
    const cookie = await signIn(made.secret);
    expect((await get("/v1/models", { cookie })).status).toBe(200);
    await keys.revoke(made.key.id);
    expect(await refusal(await get("/v1/models", { cookie }))).toEqual([401, "UNAUTHENTICATED"]);
    expect(await shown(await get("/studio/v1/session", { cookie }))).toMatchObject({ signedIn: false });
    const other = await signIn(bob);
    await tenants.update("bob", { disabled: true });
    expect(await refusal(await get("/v1/models", { cookie: other }))).toEqual([401, "UNAUTHENTICATED"]);
    await tenants.update("bob", { disabled: false });
  });

  test("cookies that are damaged, of another database or empty are none", async () => {
    const cookie = await signIn(ann);
    const last = cookie.at(-3) === "A" ? "B" : "A";
    const damaged = `${cookie.slice(0, -3)}${last}${cookie.slice(-2)}`;
    const foreign = `milora_studio=${new Sessions(Buffer.alloc(32)).seal(ann)}`;
    for (const none of [damaged, foreign, "milora_studio=", "milora_studio=x", `milora_studio=${"A".repeat(5000)}`]) {
      expect(await refusal(await get("/v1/models", { cookie: none }))).toEqual([401, "UNAUTHENTICATED"]);
    }
  });

  test("a session ends 12 hours after its last use", () => {
    let now = 0;
    const sessions = new Sessions(Buffer.alloc(32, 7), () => now);
    const value = sessions.seal("mk_x");
    now = 60_000;
    expect(sessions.open(value)).toEqual({ key: "mk_x", renew: false });
    now = SESSION_MS - 1;
    expect(sessions.open(value)).toEqual({ key: "mk_x", renew: true });
    now = SESSION_MS;
    expect(sessions.open(value)).toBeUndefined();
  });

  test("while it is used it is renewed, streams included", async () => {
    const secret = await closed.server.services.store.secret("studio");
    const hoursAgo = new Sessions(secret, () => Date.now() - 3 * 3_600_000).seal(ann);
    const headers = { cookie: `milora_studio=${hoursAgo}`, ...OWN };
    const stream = await post(`${closed.url}/v1/completions`, { ...ask, stream: true }, headers);
    await stream.text();
    for (const response of [stream, await get("/v1/models", headers)]) {
      const renewed = cookieOf(response);
      expect(renewed).not.toBe(headers.cookie);
      const again = await get("/v1/models", { cookie: renewed });
      expect([again.status, again.headers.getSetCookie()]).toEqual([200, []]);
    }
  });
});

describe("other sites' pages", () => {
  const refused = [403, "FORBIDDEN"];

  test("by cookie nothing is changed without the studio's header", async () => {
    const cookie = await signIn(admin);
    const tenant = { id: "forged" };
    expect(await refusal(await post(`${closed.url}/admin/v1/tenants`, tenant, { cookie }))).toEqual(refused);
    expect(await refusal(await post(`${closed.url}/v1/completions`, ask, { cookie }))).toEqual(refused);
    for (const method of ["DELETE", "PUT", "PATCH"]) {
      const response = await fetch(`${closed.url}/admin/v1/tenants/ann`, { method, headers: { cookie } });
      expect(await refusal(response)).toEqual(refused);
    }
    // A key in the head is sent by no browser of itself.
    const byKey = await post(`${closed.url}/v1/completions`, ask, { authorization: `Bearer ${ann}` });
    expect(byKey.status).toBe(200);
    expect((await closed.server.services.store.tenants.list()).map(({ id }) => id)).not.toContain("forged");
  });

  test("by cookie nothing is answered to another origin, another port included", async () => {
    const cookie = await signIn(admin);
    const port = new URL(closed.url).port;
    for (const headers of [
      { origin: "https://evil.example" },
      { origin: "null" },
      { origin: "http://127.0.0.1:1" },
      { origin: `https://127.0.0.1.evil.example:${port}` },
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site" },
      { "sec-fetch-site": "same-site", origin: closed.url },
    ]) {
      const all = { cookie, ...OWN, ...(headers as Record<string, string>) };
      expect(await refusal(await get("/admin/v1/tenants", all))).toEqual(refused);
      expect(await refusal(await post(`${closed.url}/v1/completions`, ask, all))).toEqual(refused);
      expect(await refusal(await post(session(closed.url), { key: admin }, all))).toEqual(refused);
    }
    for (const headers of [
      { origin: closed.url },
      { origin: closed.url, "sec-fetch-site": "same-origin" },
      { "sec-fetch-site": "none" },
      // Behind a proxy that names another host.
      { origin: "https://milora.example", "sec-fetch-site": "same-origin" },
    ]) {
      const all = { cookie, ...OWN, ...(headers as Record<string, string>) };
      expect((await post(`${closed.url}/v1/completions`, ask, all)).status).toBe(200);
    }
  });

  test("a form cannot sign anybody in", async () => {
    for (const type of ["text/plain", "application/x-www-form-urlencoded"]) {
      const response = await post(session(closed.url), JSON.stringify({ key: ann }), { "content-type": type });
      expect(await refusal(response)).toEqual([415, "MEDIA_TYPE_UNSUPPORTED"]);
    }
  });

  test("an open server lets its own pages in, by either name, and none of another port that changes something", async () => {
    const port = new URL(open.url).port;
    for (const host of ["127.0.0.1", "localhost"]) {
      const url = `http://${host}:${port}`;
      expect((await post(`${url}/v1/completions`, ask, { origin: url })).status).toBe(200);
      expect((await fetch(session(url), { headers: { origin: url } })).status).toBe(200);
      for (const origin of ["http://127.0.0.1:1", "http://localhost", "https://evil.example"]) {
        expect(await refusal(await post(`${url}/v1/completions`, ask, { origin }))).toEqual(refused);
        expect(await refusal(await fetch(`${url}/v1/adapters/x`, { method: "DELETE", headers: { origin } }))).toEqual(
          refused,
        );
      }
    }
    const seen = await fetch(`${open.url}/v1/models`, { headers: { origin: "https://evil.example" } });
    expect(await refusal(seen)).toEqual(refused);
  });
});

describe("wrong keys", () => {
  test("are refused, ten a minute; what was tried is in no log", async () => {
    await using server = await startServer(`${directory}/tried`, { auth: "required", logLevel: "trace" });
    const { secret } = await server.server.services.store.keys.create({ admin: true });
    const tries = [`mk_${"z".repeat(43)}`, "password-of-somebody", `${secret}x`];
    expect(await refusal(await post(session(server.url), { key: "" }))).toEqual([400, "REQUEST_INVALID"]);
    expect(await refusal(await post(session(server.url), { key: "y".repeat(201) }))).toEqual([400, "REQUEST_INVALID"]);
    expect((await post(session(server.url), { key: secret })).status).toBe(200);
    for (let i = 0; i < 10; i++) {
      const response = await post(session(server.url), { key: tries[i % 3] });
      expect(response.headers.getSetCookie()).toEqual([]);
      expect(await refusal(response)).toEqual([401, "UNAUTHENTICATED"]);
    }
    const limited = await post(session(server.url), { key: secret });
    expect(Number(limited.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await refusal(limited)).toEqual([429, "TOO_MANY_ATTEMPTS"]);
    const log = JSON.stringify(server.lines);
    expect(log).toContain("/studio/v1/session");
    for (const tried of [...tries, secret, "yyyyyyyy"]) expect(log).not.toContain(tried);
  });

  test("each address, and each network of IPv6, has tries of its own, which come back after a minute", () => {
    let now = 0;
    const attempts = new Attempts(2, () => now);
    attempts.failed("10.0.0.1");
    expect(attempts.waitOf("10.0.0.1")).toBe(0);
    attempts.failed("10.0.0.1");
    expect([attempts.waitOf("10.0.0.1"), attempts.waitOf("10.0.0.2")]).toEqual([60, 0]);
    attempts.failed("2001:db8::1");
    attempts.failed("2001:db8:0:0:ffff::2");
    expect([attempts.waitOf("2001:db8::3"), attempts.waitOf("2001:db8:0:1::1"), attempts.waitOf("::1")]).toEqual([
      60, 0, 0,
    ]);
    now = 59_001;
    expect(attempts.waitOf("10.0.0.1")).toBe(1);
    now = 60_000;
    expect(attempts.waitOf("10.0.0.1")).toBe(0);
    attempts.failed("10.0.0.1");
    expect(attempts.waitOf("10.0.0.1")).toBe(0);
  });
});
