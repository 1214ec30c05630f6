/** @file Bodies that are refused: whoever sends one reads why, however slowly it is sent, unless it never ends. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { tar } from "../adapters/testing.ts";
import { post, refusal, type Started, scratch, startServer, until } from "./testing.ts";

const MIB = 2 ** 20;
const { directory, remove } = scratch();
let started: Started;
beforeAll(async () => {
  started = await startServer(directory, { http: { bodyBytes: 2 * MIB }, residency: { maxBytes: 3 * MIB } });
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

const large = JSON.stringify({ model: "tiny-llama", prompt: "x".repeat(9 * MIB), max_tokens: 1 });
const head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";

async function open(): Promise<{ socket: Socket; received: () => string; failure: () => Error | undefined }> {
  const { hostname, port } = new URL(started.url);
  const socket = connect(Number(port), hostname);
  let received = "";
  let failure: Error | undefined;
  socket.setEncoding("utf8").on("data", (data: string) => {
    received += data;
  });
  socket.on("error", (error) => {
    failure = error;
  });
  await once(socket, "connect");
  return { socket, received: () => received, failure: () => failure };
}

/** What is received by a client that reads only when all of a request is sent, and then asks for something else. */
async function allThenNext(text: string): Promise<string> {
  const { socket, received, failure } = await open();
  await new Promise<void>((resolve) => socket.write(text, () => resolve()));
  socket.write("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
  await until(() => received().includes("HTTP/1.1 200") || socket.closed);
  expect(failure()).toBeUndefined();
  socket.destroy();
  return received();
}

test("fetch reads 413, thirty times", { timeout: 120_000 }, async () => {
  for (let i = 0; i < 30; i++) {
    expect(await refusal(await post(`${started.url}/v1/completions`, large))).toEqual([413, "PAYLOAD_TOO_LARGE"]);
  }
});

test.each([
  ["its length told", `${head}content-length: ${large.length}\r\n\r\n${large}`],
  ["in chunks", `${head}transfer-encoding: chunked\r\n\r\n${large.length.toString(16)}\r\n${large}\r\n0\r\n\r\n`],
])(
  "a client that reads only when all is sent, and goes on, thirty times: %s",
  { timeout: 120_000 },
  async (_, text) => {
    for (let i = 0; i < 30; i++) {
      const received = await allThenNext(text);
      expect(received).toMatch(/^HTTP\/1.1 413 /);
      expect(received).toContain("PAYLOAD_TOO_LARGE");
      expect(received).toContain("HTTP/1.1 200");
    }
  },
);

/** A form with an adapter that is larger than those that are installed. */
async function form(): Promise<string> {
  const content = "x".repeat(9 * MIB);
  const archive = await tar([
    { name: "adapter_config.json", content: "{}" },
    { name: "adapter_model.safetensors", content },
  ]);
  return `--part\r\ncontent-disposition: form-data; name="file"; filename="a.tar"\r\n\r\n${archive}\r\n--part--\r\n`;
}

test.each([
  ["a text where JSON is read", "POST /v1/completions", "text/plain", 415, "MEDIA_TYPE_UNSUPPORTED"],
  ["an upload of no kind of archive", "PUT /v1/adapters/red", "text/plain", 415, "MEDIA_TYPE_UNSUPPORTED"],
  ["a form", "PUT /v1/adapters/red", "multipart/form-data; boundary=part", 413, "PAYLOAD_TOO_LARGE"],
])(
  "%s is refused, and the connection goes on, ten times",
  { timeout: 60_000 },
  async (_, route, type, status, code) => {
    const body = status === 413 ? await form() : large;
    const lines = `${route} HTTP/1.1\r\nhost: localhost\r\ncontent-type: ${type}\r\n`;
    for (let i = 0; i < 10; i++) {
      const received = await allThenNext(`${lines}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
      expect(received.slice(0, 12)).toBe(`HTTP/1.1 ${status}`);
      expect(received).toContain(code);
      expect(received).toContain("HTTP/1.1 200");
    }
  },
);

test("one that never ends is cut off", async () => {
  const { socket, received } = await open();
  socket.write(`${head}transfer-encoding: chunked\r\n\r\n`);
  const chunk = `100000\r\n${"x".repeat(MIB)}\r\n`;
  let sent = 0;
  while (!socket.destroyed && sent < 1000) {
    sent++;
    if (!socket.write(chunk)) await Promise.race([once(socket, "drain"), once(socket, "close")]).catch(() => {});
  }
  expect(received()).toMatch(/^HTTP\/1.1 413 /);
  expect(sent).toBeLessThan(1000);
});
