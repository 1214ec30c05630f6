/** @file Bytes that are no request, come too slowly or are too many are refused in the form of all answers, and never within another one. */
import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Started, scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
let started: Started;
beforeAll(async () => {
  started = await startServer(directory, { http: { headersSeconds: 1, requestSeconds: 2 } });
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

/** All that is received until the server closes the connection; `later` is sent when something has come. */
async function exchange(text: string, later?: string): Promise<string> {
  const { hostname, port } = new URL(started.url);
  const socket = connect(Number(port), hostname);
  let received = "";
  socket.setEncoding("utf8").on("data", (data: string) => {
    if (received === "" && later !== undefined) socket.write(later);
    received += data;
  });
  socket.on("error", () => {}); // closed while it was still written to
  socket.write(text);
  await once(socket, "close");
  return received;
}

test.each([
  ["no request", "an odd line\r\n\r\n", 400, "REQUEST_INVALID", "the request: is no HTTP request"],
  [
    "a head that is too long",
    `GET / HTTP/1.1\r\nx: ${"x".repeat(20_000)}\r\n\r\n`,
    431,
    "HEADERS_TOO_LARGE",
    /shorter/,
  ],
  ["a head that never ends", "GET / HTTP/1.1\r\nhost: localhost\r\n", 408, "REQUEST_TIMEOUT", /in time/],
  [
    "a body that never ends",
    "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
    408,
    "REQUEST_TIMEOUT",
    /in time/,
  ],
])("%s", async (_, text, status, code, message) => {
  const [head, body] = (await exchange(text)).split("\r\n\r\n") as [string, string];
  expect(head).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  for (const line of ["x-content-type-options: nosniff", "connection: close", "content-type: application/json"]) {
    expect(head).toContain(line);
  }
  expect(head).toMatch(/x-request-id: req-[0-9a-f-]{36}/);
  expect(head).toContain(`content-length: ${body.length}`);
  const { error } = JSON.parse(body) as { error: Record<string, unknown> };
  expect(error).toMatchObject({ code, type: status === 408 ? "timeout_error" : "invalid_request_error", param: null });
  if (typeof message === "string") expect(error.message).toBe(message);
  else expect(error.message).toMatch(message);
});

test("an answer that is being written is broken off, and nothing is put into it", async () => {
  const body = JSON.stringify({ model: "tiny-llama", prompt: "Once", max_tokens: 200, stream: true, ignore_eos: true });
  const request = `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
  const received = await exchange(request, "an odd line\r\n\r\n");
  const [answer] = received.split("data: [DONE]"); // had it ended already, the next one would be another
  expect(answer).toMatch(/^HTTP\/1\.1 200 /);
  expect(answer!.match(/HTTP\/1\.1/g)).toHaveLength(1);
  expect(answer).not.toContain("REQUEST_INVALID");
});
