/** @file Bodies that are too large: whoever sends one reads why, however slowly it is sent, unless it never ends. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { post, refusal, type Started, scratch, startServer, until } from "./testing.ts";

const MIB = 2 ** 20;
const { directory, remove } = scratch();
let started: Started;
beforeAll(async () => {
  started = await startServer(directory, { http: { bodyBytes: 2 * MIB } });
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
      const { socket, received, failure } = await open();
      await new Promise<void>((resolve) => socket.write(text, () => resolve()));
      socket.write("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
      await until(() => received().includes("HTTP/1.1 200") || socket.closed);
      expect(failure()).toBeUndefined();
      expect(received()).toMatch(/^HTTP\/1.1 413 /);
      expect(received()).toContain("PAYLOAD_TOO_LARGE");
      expect(received()).toContain("HTTP/1.1 200");
      socket.destroy();
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
