/** @file What OpenAI's API refuses, as its own client hears of it. */
import type OpenAI from "openai";
import { APIError } from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { post, type Started, scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
let started: Started;
let client: OpenAI;

beforeAll(async () => {
  started = await startServer(`${directory}/data`);
  client = started.client();
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

const prompt = "The cell membrane is";
const greedy = { prompt, max_tokens: 8, temperature: 0 } as const;

describe("errors", () => {
  test.each([
    [{ n: 0 }, "n"],
    [{ temperature: -1 }, "temperature"],
    [{ max_tokens: 0 }, "max_tokens"],
    [{ suffix: "x" }, "suffix"],
    [{ prompt: [1.5] }, "prompt"],
    [{ logprobs: 99 }, "logprobs"],
    [{ best_of: 2, n: 3 }, "best_of"],
    [{ response_format: { type: "json_object" } }, "response_format"],
    [{ model: undefined }, "model"],
  ])("%j is 400 and names the field", async (change, param) => {
    const body = { model: "tiny-llama", ...greedy, ...change } as unknown as OpenAI.CompletionCreateParamsNonStreaming;
    const error = await client.completions.create(body).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(APIError);
    expect(error).toMatchObject({ status: 400, code: "REQUEST_INVALID", param, type: "invalid_request_error" });
  });

  test.each([
    ["a length beyond the context", { max_tokens: 5000 }, "PROMPT_TOO_LONG"],
    ["ids outside the vocabulary", { prompt: [99_999] }, "PROMPT_INVALID"],
    ["no token", { prompt: [] }, "PROMPT_INVALID"],
    ["a text that cannot fit", { prompt: "x".repeat(1_000_000) }, "PROMPT_TOO_LONG"],
    ["beams and a temperature", { beam_width: 3, temperature: 1 }, "SAMPLING_OPTIONS_INVALID"],
  ])("what the engine refuses is 400: %s", async (_, change, code) => {
    const error = await client.completions
      .create({ model: "tiny-llama", ...greedy, ...change })
      .catch((e: unknown) => e);
    expect(error).toMatchObject({ status: 400, code });
    const stream = { model: "tiny-llama", ...greedy, ...change, stream: true } as const;
    expect(await client.completions.create(stream).catch((e: unknown) => e)).toMatchObject({ status: 400, code });
  });

  test("unknown fields and null ones are ignored", async () => {
    const body = { model: "tiny-llama", ...greedy, best_of: null, stop: null, some_new_field: { a: 1 } };
    const plain = await client.completions.create({ model: "tiny-llama", ...greedy });
    expect((await client.completions.create(body)).choices[0]!.text).toBe(plain.choices[0]!.text);
  });

  test("carry the request's id, which the client may give", async () => {
    const response = await post(`${started.url}/v1/completions`, {}, { "x-request-id": "mine-1" });
    expect(response.headers.get("x-request-id")).toBe("mine-1");
    const other = await post(`${started.url}/v1/completions`, {}, { "x-request-id": "no good" });
    expect(other.headers.get("x-request-id")).toMatch(/^req-[0-9a-f-]{36}$/);
    expect(started.lines.find(({ id }) => id === "mine-1")).toMatchObject({ status: 400, code: "REQUEST_INVALID" });
  });
});
