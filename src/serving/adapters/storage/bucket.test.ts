/** @file What a store of objects answers that is none, or not well: told, and never waited for without end. */
import { once } from "node:events";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import { Bucket } from "./bucket.ts";
import { bucketLocation } from "./location.ts";

let server: Server | undefined;
afterEach(() => {
  server?.closeAllConnections();
  server?.close();
});

/** A bucket behind a server that answers with what `answer` writes; how often it was asked. */
async function bucketOf(answer: (response: ServerResponse) => void, stallMs = 10_000) {
  let asked = 0;
  const own = createServer((request, response) => {
    asked++;
    request.resume();
    answer(response);
  }).listen(0, "127.0.0.1");
  server = own;
  await once(own, "listening");
  const { port } = own.address() as AddressInfo;
  const location = bucketLocation("s3://bucket/p", {
    ...{ AWS_ENDPOINT_URL: `http://127.0.0.1:${port}`, AWS_ACCESS_KEY_ID: "k", AWS_SECRET_ACCESS_KEY: "s" },
  });
  return { bucket: new Bucket(location, { stallMs, pauseMs: 0 }), asked: () => asked };
}

async function listed(bucket: Bucket): Promise<string[]> {
  const keys: string[] = [];
  for await (const { found } of bucket.list("")) keys.push(...found.map(({ key }) => key));
  return keys;
}

const entry = (key: string, more = "") =>
  `<Contents><Key>${key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>7</Size>${more}</Contents>`;
const list = (inside: string) => `<?xml version="1.0"?><ListBucketResult>${inside}</ListBucketResult>`;

test.each([
  ["a page of somebody else's", "<html>Welcome</html>", /no list of objects/],
  ["a key without a size", list("<Contents><Key>a</Key></Contents>"), /lacks a key, a size or a time/],
  ["a size below zero", list(entry("a").replace(">7<", ">-7<")), /lacks/],
  [
    "pages without end",
    list("<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"),
    /goes on with what was there before/,
  ],
  ["more than can be a page", list(entry("a").repeat(200_000)), /more than 16777216 bytes/],
])("%s is no list", async (_, text, problem) => {
  const { bucket, asked } = await bucketOf((response) => response.end(text));
  await expect(listed(bucket)).rejects.toMatchObject({
    kind: "refused",
    message: expect.stringMatching(problem) as string,
  });
  expect(asked()).toBeLessThanOrEqual(2);
});

test("keys are read as they are escaped; one that escapes nothing is somebody else's", async () => {
  const { bucket } = await bucketOf((response) => response.end(list(["a%20b", "c+d", "50%", "&lt;"].map((key) => entry(key)).join("")))); // biome-ignore format: one line
  expect(await listed(bucket)).toEqual(["a b", "c d", "50%", "<"]);
});

test("a list that stops, or breaks, in the middle is asked for again, and then the store is away", async () => {
  for (const stop of [() => {}, (response: ServerResponse) => void response.destroy()]) {
    const { bucket, asked } = await bucketOf((response) => {
      response.writeHead(200, { "content-length": "100000" });
      response.write(list(entry("a")));
      setImmediate(stop, response);
    }, 100);
    await expect(listed(bucket)).rejects.toMatchObject({ kind: "away" });
    expect(asked()).toBe(3);
    server!.closeAllConnections();
  }
});

test("an answer that stops within what is said of a failure is waited for no longer", async () => {
  const { bucket } = await bucketOf((response) => {
    response.writeHead(403, { "content-length": "1000" });
    response.write("<Error>");
  }, 100);
  await expect(bucket.delete("a")).rejects.toMatchObject({ kind: "away" });
});

test("an answer without content is no object", async () => {
  const { bucket } = await bucketOf((response) => response.writeHead(204).end());
  const { content } = await bucket.get("a", new AbortController().signal);
  const read = async () => {
    for await (const _ of content);
  };
  await expect(read()).rejects.toMatchObject({ kind: "broken" });
});
