/** @file Odd requests to every route of a real server: each is answered as it should be or refused in so many words, and the server goes on. */
import { readdirSync } from "node:fs";
import { Agent, type IncomingHttpHeaders, request } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { MiloraError } from "../../src/base/index.ts";
import { entriesOf, tar } from "../../src/serving/adapters/testing.ts";
import { makeAdapter, type Started, startServer, until } from "../../src/serving/http/testing.ts";
import { byteDamage, damageBytes, damageJson, jsonDamage, scratch, settings, Tally, TIMEOUT } from "./support.ts";

const directory = scratch();
const agent = new Agent({ keepAlive: true, maxSockets: 4 });
let started: Started;
let url: URL;
const keys = { admin: "", tenant: "" };
let cookie = "";
let archive: Buffer;
let routes: { readonly method: string; readonly path: string }[];

/** Routes that are in no document. */
const HIDDEN = ["/", "/studio", "/studio/{x}", "/studio/v1/session", "/studio/v1/runs", "/studio/v1/runs/{x}", "/studio/v1/runs/{x}/series", "/studio/v1/runs/{x}/experts", "/studio/v1/reproductions/{x}", "/health", "/docs", "/openapi.json", "/none", "/v1", "/admin/v1"]; // biome-ignore format: one line

beforeAll(async () => {
  const adapter = await makeAdapter(directory.path, "lora", 1);
  const routed = await makeAdapter(directory.path, "milora", 2);
  archive = await tar(entriesOf(adapter));
  started = await startServer(join(directory.path, "data"), {
    ...{ auth: "required", adapters: { red: adapter, routed }, runs: [directory.path], chatTemplate: "alpaca" },
    ...{ context: 64, residency: { maxBytes: 1 << 20 }, limits: { maxWaiting: 4, maxWaitingPerTenant: 2 } },
    http: { bodyBytes: 1 << 20, deadlineSeconds: 20, headersSeconds: 2, requestSeconds: 4, maxTokens: 4 },
  });
  url = new URL(started.url);
  const { store } = started.server.services;
  await store.tenants.create({ id: "acme" });
  keys.tenant = (await store.keys.create({ tenant: "acme" })).secret;
  keys.admin = (await store.keys.create({ admin: true })).secret;
  const session = await send({ method: "POST", path: "/studio/v1/session", headers: { "content-type": "application/json" }, body: JSON.stringify({ key: keys.admin }) }); // biome-ignore format: one line
  cookie = session.headers["set-cookie"]![0]!.split(";")[0]!;
  const { paths } = JSON.parse((await send({ method: "GET", path: "/openapi.json" })).text) as {
    paths: Record<string, Record<string, unknown>>;
  };
  routes = [
    ...Object.entries(paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => ({ method: method.toUpperCase(), path })),
    ),
    ...HIDDEN.map((path) => ({ method: "GET", path })),
  ];
  expect(routes.length).toBeGreaterThan(50);
}, TIMEOUT);
afterAll(async () => {
  agent.destroy();
  await started[Symbol.asyncDispose]();
});

interface Sent {
  readonly method: string;
  readonly path: string;
  readonly headers?: Record<string, string>;
  readonly body?: string | Uint8Array | undefined;
}

interface Received {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

function send(sent: Sent, fresh?: Agent): Promise<Received> {
  const { method, path, headers = {}, body } = sent;
  return new Promise((resolve, reject) => {
    const asked = request(
      { host: url.hostname, port: url.port, agent: fresh ?? agent, method, path, headers },
      async (response) => {
        resolve({ status: response.statusCode!, headers: response.headers, text: await text(response) });
      },
    );
    // The server may close an open connection at the moment it is used again; a new one it has to answer on.
    asked.on("error", (error) => {
      if (asked.reusedSocket && fresh === undefined) {
        send(sent, new Agent()).then(resolve, reject);
      } else reject(error);
    });
    asked.end(body);
  });
}

/** Nothing of the inside: no stack, no file, no secret. */
const INSIDE = /\n\s+at |node_modules|\.[jt]s:\d|fuzz-[A-Za-z0-9]{6}|mk_[0-9A-Za-z]{43}/;

/** What holds of every answer. @throws MiloraError with the code of a refusal, to be counted */
function sound({ status, headers, text: body }: Received, { method, path }: Sent): void {
  const said = `${method} ${path}: ${status} ${body.slice(0, 300)}`;
  expect(status, said).toBeLessThan(500);
  expect(headers["x-content-type-options"], said).toBe("nosniff");
  expect(headers["x-request-id"], said).toMatch(/^[A-Za-z0-9._:-]{1,128}$/);
  expect(body.length, "bounded").toBeLessThan(2_000_000);
  if (status < 400) return;
  expect(body, said).not.toMatch(INSIDE);
  if (method === "HEAD") throw new MiloraError("HEAD", String(status));
  const { error } = JSON.parse(body) as { error: { message: string; type: string; code: string } };
  expect(error.message, said).not.toBe("");
  expect(error.type, said).toMatch(/_error$/);
  throw new MiloraError(error.code, error.message);
}

/** Nothing is left under way, and the next request is answered. */
async function atRest(): Promise<void> {
  const { state, scheduler, store } = started.server.services;
  await until(() => state.inFlight === 0);
  expect(scheduler.stats()).toMatchObject({ running: 0, waiting: 0 });
  expect(store.quotas.state("acme").running).toBe(0);
  expect((await send({ method: "GET", path: "/readyz" })).status).toBe(200);
  expect(started.lines.filter(({ level }) => level === "error")).toEqual([]);
  (started.lines as unknown[]).length = 0;
}

const WORDS = ["x", "red", "tiny-llama", "base:red", "acme/red", "..", "%2e%2e%2fetc%2fpasswd", "%00", "%", "%ff%fe", "__proto__", "constructor", "a".repeat(500), "0", "-1", "key_0", "%0d%0aset-cookie:%20a=b", "*", ";", "~"]; // biome-ignore format: one line
const QUERIES = ["", "", "?", "?tenant=x", "?tenant=../x", "?__proto__[a]=1", "?from=1e999", "?from=x&to=y", "?points=1e9", "?by=tenant,adapter,hour", "?by=,,,", "?seconds=1e309", "?a=1&a=2&a[]=3", "?%", `?${"a&".repeat(1500)}`, "?tenant=%00"]; // biome-ignore format: one line
const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "TRACE"];
const TYPES = ["application/json", "application/json; charset=utf-16", "application/x-tar", "application/gzip", "text/plain", "multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded", "", "*/*", "application/json\t"]; // biome-ignore format: one line
const HEADERS: readonly Record<string, string>[] = [{}, {}, {}, { origin: "null" }, { origin: "http://a b" }, { "sec-fetch-site": "cross-site" }, { "x-request-id": "a b\tc" }, { "x-request-id": "x".repeat(200) }, { "content-encoding": "gzip" }, { "x-forwarded-proto": "https,,javascript:" }, { host: "evil.example:1:2" }, { "if-none-match": "*" }, { range: "bytes=0-1,2-3,-9" }, { expect: "100-continue" }, { "x-milora-studio": "1" }, { accept: "\u00ff" }, { "accept-encoding": "br;q=x, *" }]; // biome-ignore format: one line

const completion = { model: "red", prompt: "The cell", max_tokens: 2, temperature: 0, n: 1, stop: ["x"], logit_bias: { "5": 1 }, logprobs: 2 }; // biome-ignore format: one line
const BODIES: readonly { readonly path: string; readonly method?: string; readonly body: object }[] = [
  { path: "/v1/completions", body: completion },
  { path: "/v1/completions", body: { ...completion, prompt: [[5, 6], [7]], stream: true, echo: true } },
  { path: "/v1/chat/completions", body: { model: "tiny-llama", messages: [{ role: "user", content: [{ type: "text", text: "Hi" }] }], max_completion_tokens: 2, chat_template_kwargs: { a: 1 } } }, // biome-ignore format: one line
  { path: "/studio/v1/explore", body: { adapters: ["routed"], prompt: "Hi", format: "alpaca" } },
  { path: "/studio/v1/explore/data", body: { adapter: "routed", text: 'instruction,output\na,"b"', format: "csv", limit: 2 } }, // biome-ignore format: one line
  { path: "/studio/v1/session", body: { key: "mk_wrong" } },
  { path: "/v1/load_lora_adapter", body: { lora_name: "x", lora_path: "../../etc", load_inplace: true } },
  { path: "/v1/unload_lora_adapter", body: { lora_name: "nix" } },
  { path: "/admin/v1/tenants", body: { id: "t1", name: "T", weight: 2, limits: { tokensPerDay: 5, maxConcurrent: 2 } } }, // biome-ignore format: one line
  { path: "/admin/v1/tenants/victim", method: "PATCH", body: { disabled: false, limits: { maxAdapters: null } } },
  { path: "/admin/v1/keys", body: { tenant: "t1", label: "x", expiresAt: "2030-01-01" } },
];

/** A key of the tenant or administrator, none, a wrong one, or a cookie, which may be damaged. */
const asker = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom("admin", "tenant").map((who) => ({ who })) },
  fc.constantFrom({ who: "none" }, { who: "wrong" }, { who: "odd" }),
  fc.record({ who: fc.constant("cookie"), damage: fc.option(byteDamage) }),
);

type Asker = typeof asker extends fc.Arbitrary<infer A> ? A : never;

function headersOf(by: Asker): Record<string, string> {
  if (by.who === "admin" || by.who === "tenant") return { authorization: `Bearer ${keys[by.who]}` };
  if (by.who === "wrong") return { authorization: `Bearer mk_${"x".repeat(43)}` };
  if (by.who === "odd") return { authorization: `Basic${" ".repeat(4000)}\u00ff`, cookie: `a;=;__proto__=1; ${"x=y;".repeat(500)}` }; // biome-ignore format: one line
  if (by.who === "none") return {};
  const value = "damage" in by && by.damage ? damageBytes(Buffer.from(cookie), [by.damage]).toString("latin1") : cookie;
  return { cookie: value.replace(/[^\x20-\x7e]/g, "~"), "x-milora-studio": "1", "sec-fetch-site": "same-origin" };
}

const CUT = new Set(["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"]);

test(
  "every route, with odd names, queries, headers, cookies, kinds of bodies and methods",
  async () => {
    const tally = new Tally();
    await fc.assert(
      fc.asyncProperty(
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        fc.record({
          word: fc.constantFrom(...WORDS),
          query: fc.constantFrom(...QUERIES),
          method: fc.option(fc.constantFrom(...METHODS), { freq: 3 }),
          type: fc.constantFrom(...TYPES),
          headers: fc.constantFrom(...HEADERS),
          by: asker,
          body: fc.oneof(
            fc.uint8Array({ maxLength: 200 }),
            fc.json().map((json) => Buffer.from(json)),
            fc.constantFrom("", "{}", "[]", "null", "--x\r\n\r\n", '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nzzz\r\n--x--\r\n').map((s) => Buffer.from(s)), // biome-ignore format: one line
          ),
        }),
        async (at, { word, query, method, type, headers, by, body }) => {
          const route = routes[Math.floor(at * routes.length)]!;
          const path = route.path.replaceAll(/\{[^}]+\}/g, word).replaceAll("*", word) + query;
          const verb = method ?? route.method;
          const sent: Sent = {
            ...{ method: verb, path },
            headers: { ...headers, ...headersOf(by), ...(type && { "content-type": type }) },
            ...(!CUT.has(verb) && { body }),
          };
          await tally.check(async () => sound(await send(sent), sent));
        },
      ),
      settings(500),
    );
    tally.conclude();
    await atRest();
  },
  TIMEOUT,
);

test(
  "bodies of every route that reads JSON, with damaged values",
  async () => {
    const tally = new Tally();
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...BODIES),
        fc.array(jsonDamage, { maxLength: 3 }),
        fc.boolean(),
        async ({ path, method = "POST", body }, damages, admin) => {
          const text = damageJson(JSON.stringify(body), damages);
          const by = headersOf({ who: admin ? "admin" : "tenant" });
          const sent: Sent = { method, path, headers: { ...by, "content-type": "application/json" }, body: text };
          await tally.check(async () => sound(await send(sent), sent));
        },
      ),
      settings(250),
    );
    tally.conclude();
    await atRest();
  },
  TIMEOUT,
);

test(
  "uploads, damaged: what is refused leaves nothing, what is installed can be used",
  async () => {
    const tally = new Tally();
    const files = join(directory.path, "data/adapters");
    const damages = fc.array(byteDamage, { minLength: 1, maxLength: 3 });
    const { registry } = started.server.services;
    await fc.assert(
      fc.asyncProperty(damages, fc.constantFrom("tar", "gz", "form"), async (list, kind) => {
        const damaged = damageBytes(kind === "gz" ? gzipSync(archive, { level: 1 }) : archive, list);
        const head = '--x\r\ncontent-disposition: form-data; name="file"; filename="a.tar"\r\n\r\n';
        const body =
          kind === "form" ? Buffer.concat([Buffer.from(head), damaged, Buffer.from("\r\n--x--\r\n")]) : damaged;
        const type = kind === "form" ? "multipart/form-data; boundary=x" : "application/x-tar";
        const sent: Sent = { method: "PUT", path: "/v1/adapters/mine", headers: { ...headersOf({ who: "tenant" }), "content-type": type }, body }; // biome-ignore format: one line
        await tally.check(async () => {
          const received = await send(sent);
          expect(readdirSync(join(files, ".drafts"))).toEqual([]);
          if (received.status === 201) {
            const record = await registry.resolve({ tenant: "acme", role: "tenant" }, "mine");
            await registry.load(record!);
          }
          sound(received, sent);
        });
      }),
      settings(150),
    );
    tally.conclude();
    await atRest();
  },
  TIMEOUT,
);

const RAW = [
  "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n",
  `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${JSON.stringify(completion).length}\r\n\r\n${JSON.stringify(completion)}`, // biome-ignore format: one line
  "POST /studio/v1/session HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"key\r\n6\r\n\":\"x\"}\r\n0\r\n\r\n", // biome-ignore format: one line
  "PUT /v1/adapters/x HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-tar\r\ncontent-length: 2000\r\n\r\nonly a part",
  `GET / HTTP/1.1\r\nhost: localhost\r\n${"x-many: 1\r\n".repeat(1200)}\r\n`,
];

/** Writes bytes, ends, and gives what came back until the connection was closed. */
function exchange(bytes: Uint8Array, piece: number): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(Number(url.port), url.hostname);
    let received = "";
    socket.setEncoding("latin1").on("data", (data: string) => {
      received += data;
    });
    socket.on("error", () => {}); // closed by the server while it was still written to
    socket.on("close", () => resolve(received));
    for (let at = 0; at < bytes.length; at += piece) socket.write(bytes.subarray(at, at + piece));
    socket.end();
  });
}

test(
  "bytes that are nearly HTTP, cut and in pieces",
  async () => {
    const tally = new Tally();
    const list = fc.array(byteDamage, { maxLength: 3 });
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...RAW),
        list,
        fc.constantFrom(1, 50, 100_000),
        async (source, damages, piece) => {
          const bytes = damageBytes(Buffer.from(source), damages);
          await tally.check(async () => {
            const received = await exchange(bytes, Math.max(piece, Math.ceil(bytes.length / 200)));
            if (received === "") throw new MiloraError("CLOSED", "without an answer");
            const [, status] = /^HTTP\/1\.1 ([1-5]\d\d) /.exec(received) ?? [];
            expect(Number(status), received.slice(0, 300)).toBeLessThan(500);
            expect(received).not.toMatch(INSIDE);
            if (Number(status) >= 400) expect(received).toContain("x-content-type-options: nosniff");
            if (Number(status) >= 400) throw new MiloraError(status!, "refused");
          });
        },
      ),
      settings(150),
    );
    tally.conclude();
    await atRest();
  },
  TIMEOUT,
);
