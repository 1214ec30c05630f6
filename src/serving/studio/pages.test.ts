/** @file Tests of how the studio's pages are served: what they may do, who keeps them, and that nothing else is. */
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { brotliCompressSync, brotliDecompressSync, gunzipSync, gzipSync } from "node:zlib";
import type { FastifyInstance } from "fastify";
import { afterAll, beforeAll, expect, test } from "vitest";
import { httpLimitsSchema } from "../http/config.ts";
import { newApp, prepareError } from "../http/fastify.ts";
import { scratch } from "../http/testing.ts";
import { studioPages } from "./pages.ts";

const { directory, remove } = scratch();
const root = join(directory, "studio");
const SCRIPT = "console.log('studio');".repeat(20);
let app: FastifyInstance;
let url: string;

const START = "<!doctype html><title>studio</title>";

async function serve(from: string): Promise<[FastifyInstance, string]> {
  const app = await newApp(httpLimitsSchema.parse({}));
  app.setErrorHandler((error, request, reply) => reply.send(prepareError(error, request, reply).body));
  await studioPages(app, "/docs", from);
  return [app, await app.listen({ port: 0, host: "127.0.0.1" })];
}

beforeAll(async () => {
  mkdirSync(join(root, "assets"), { recursive: true });
  writeFileSync(join(root, "index.html"), START);
  writeFileSync(join(directory, "secret.txt"), "the secret");
  writeFileSync(join(root, ".hidden"), "the secret");
  const files = { "index.html": START, "assets/index-BdX3.js": SCRIPT };
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(join(root, name), text);
    writeFileSync(join(root, `${name}.br`), brotliCompressSync(text));
    writeFileSync(join(root, `${name}.gz`), gzipSync(text));
  }
  writeFileSync(join(root, "assets/milora-x1.svg"), "<svg/>");
  symlinkSync(directory, join(root, "assets/up"));
  [app, url] = await serve(root);
});

afterAll(async () => {
  await app.close();
  remove();
});

interface Answer {
  readonly status: number;
  readonly headers: Record<string, string | string[] | undefined>;
  readonly body: Buffer;
}

/** As the bytes are, the path too. */
function get(path: string, headers: Record<string, string> = {}, method = "GET", base = url): Promise<Answer> {
  const { hostname, port } = new URL(base);
  return new Promise((resolve, reject) => {
    const sent = request({ hostname, port, path, headers, method }, async (response) => {
      const parts: Buffer[] = [];
      for await (const part of response) parts.push(part as Buffer);
      resolve({ status: response.statusCode!, headers: response.headers, body: Buffer.concat(parts) });
    });
    sent.on("error", reject).end();
  });
}

test("the first page is asked for each time; files with a hash in their name are kept", async () => {
  const page = await get("/studio/");
  expect([page.status, page.body.toString()]).toEqual([200, START]);
  expect(page.headers).toMatchObject({
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-cache",
    vary: "accept-encoding",
  });
  const again = await get("/studio/", { "if-none-match": page.headers.etag as string });
  expect([again.status, again.body.length]).toEqual([304, 0]);
  const script = await get("/studio/assets/index-BdX3.js");
  expect(script.headers).toMatchObject({
    "content-type": "application/javascript; charset=utf-8",
    "cache-control": "public, max-age=31536000, immutable",
  });
  expect((await get("/studio/assets/milora-x1.svg")).headers["content-type"]).toBe("image/svg+xml");
  expect((await get("/studio/", {}, "HEAD")).body.length).toBe(0);
});

test("what was compressed when it was built is sent so to who takes it", async () => {
  for (const [accepted, used, unpack] of [
    ["gzip, deflate, br", "br", brotliDecompressSync],
    ["gzip", "gzip", gunzipSync],
    ["identity", undefined, (bytes: Buffer) => bytes],
  ] as const) {
    for (const [path, text, type] of [
      ["/studio/assets/index-BdX3.js", SCRIPT, "application/javascript"],
      ["/studio/runs", START, "text/html"],
    ] as const) {
      const { headers, body } = await get(path, { "accept-encoding": accepted });
      expect(headers["content-encoding"]).toBe(used);
      expect(headers["content-type"]).toContain(type);
      expect(unpack(body).toString()).toBe(text);
    }
  }
  const plain = await get("/studio/assets/milora-x1.svg", { "accept-encoding": "br, gzip" });
  expect([plain.headers["content-encoding"], plain.body.toString()]).toEqual([undefined, "<svg/>"]);
});

test("nothing of elsewhere, nothing inline, no frames", async () => {
  for (const path of ["/studio/", "/studio/routing?a=b", "/studio/assets/index-BdX3.js"]) {
    const { headers } = await get(path);
    const policy = new Map(
      (headers["content-security-policy"] as string).split("; ").map((rule) => {
        const [name, ...values] = rule.split(" ");
        return [name!, values.join(" ")] as const;
      }),
    );
    expect(Object.fromEntries(policy)).toEqual({
      "default-src": "'none'",
      "script-src": "'self'",
      "style-src": "'self'",
      "img-src": "'self' data:",
      "connect-src": "'self'",
      "font-src": "'self'",
      "base-uri": "'none'",
      "form-action": "'self'",
      "frame-ancestors": "'none'",
    });
    expect(headers).toMatchObject({
      "x-content-type-options": "nosniff",
      "referrer-policy": "same-origin",
      "cross-origin-opener-policy": "same-origin",
      "permissions-policy": expect.stringContaining("camera=()"),
    });
  }
});

test("addresses within the studio get its first page; scripts of a build that is gone, and unknown requests, do not", async () => {
  for (const path of ["/studio/runs/a%2Fb", "/studio/operations/keys", "/studio/v2"]) {
    const { status, body } = await get(path);
    expect([status, body.toString()]).toEqual([200, START]);
  }
  for (const path of [
    "/studio/assets/index-old.js",
    "/studio/assets/",
    "/studio/v1/nothing",
    "/studio/v1",
    "/studiox",
  ]) {
    const { status, body } = await get(path);
    expect([path, status, JSON.parse(body.toString())]).toMatchObject([
      path,
      404,
      { error: { code: "ROUTE_NOT_FOUND" } },
    ]);
  }
  expect((await get("/studio/", {}, "POST")).status).toBe(404);
  for (const path of ["/", "/studio"])
    expect(await get(path)).toMatchObject({ status: 302, headers: { location: "/studio/" } });
});

test.each([
  "/studio/../secret.txt",
  "/studio/%2e%2e/secret.txt",
  "/studio/..%2fsecret.txt",
  "/studio/assets/..%2f..%2fsecret.txt",
  "/studio/assets/up/secret.txt",
  "/studio//etc/passwd",
  "/studio/%00",
  "/studio/..%5csecret.txt",
  "/studio/.hidden",
  "/studio/assets/%2e%2e%2f.hidden",
  "/studio/%ff",
])("%s leads nowhere", async (path) => {
  const { body } = await get(path);
  expect(body.toString()).not.toContain("the secret");
  expect(body.toString()).not.toContain("root:");
});

test("without a build there is a word on how to make one", async () => {
  const [bare, at] = await serve(join(directory, "none"));
  try {
    const { status, headers, body } = await get("/studio/runs", {}, "GET", at);
    expect([status, headers["content-type"]]).toEqual([404, "text/plain; charset=utf-8"]);
    expect(body.toString()).toContain("npm run studio:build");
    expect(await get("/", {}, "GET", at)).toMatchObject({ status: 302, headers: { location: "/docs" } });
  } finally {
    await bare.close();
  }
});
