/** @file A server that is told to stop with a delay: not ready any more, and answering still; then gone. */
import { afterAll, expect, test } from "vitest";
import { ask, post, scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
afterAll(remove);

test("balancers are told before anybody is refused, and a stream that began before goes on to its end", async () => {
  await using started = await startServer(directory, { http: { drainDelaySeconds: 5 } });
  const { url, server } = started;
  const stream = await post(`${url}/v1/completions`, { ...ask, max_tokens: 300, ignore_eos: true, stream: true }); // biome-ignore format: one line
  expect(stream.headers.get("connection")).toBe("keep-alive");
  const reading = stream.text();
  const stopped = server.stop();
  const ready = await fetch(`${url}/readyz`);
  expect([ready.status, await ready.json()]).toEqual([503, { status: "draining" }]);
  const answer = await post(`${url}/v1/completions`, ask);
  expect([answer.status, answer.headers.get("connection")]).toEqual([200, "close"]);
  expect(server.services.state).toMatchObject({ leaving: true, draining: false });
  expect((await reading).trim().endsWith("data: [DONE]")).toBe(true);
  await stopped;
  await expect(fetch(`${url}/readyz`)).rejects.toThrow();
});
