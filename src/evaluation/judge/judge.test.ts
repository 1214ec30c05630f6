/** @file The judge's client against a real HTTP server: what is sent, what is tried again, what is kept, what errors say. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { completion, json, judgeServer } from "../../../test/judge-server.ts";
import { judgingCost } from "./estimate.ts";
import { Judge, type JudgeOptions, judgeKey, judgeUrl } from "./judge.ts";
import type { JudgeMessage } from "./prompts.ts";

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), "milora-judge-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const KEY = "sk-secret-0123456789";

function judgeAt(url: string, options: Partial<JudgeOptions> = {}): Judge {
  const base = { model: "judge-1", temperature: 0, maxTokens: 2048, timeoutMs: 5000, backoffMs: 1, key: KEY };
  return new Judge({ url, cache: options.cache ?? temporary(), ...base, ...options });
}

const requests = (...texts: string[]): JudgeMessage[][] =>
  texts.map((content) => [
    { role: "system", content: "Judge." },
    { role: "user", content },
  ]);

const filesIn = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".json"));

test("asks as the protocol says, side by side, and gives the answers in the order of the requests", async () => {
  let arrived = () => {};
  const three = new Promise<void>((resolve) => {
    arrived = resolve;
  });
  const server = await judgeServer(async ({ body }, n) => {
    if (n === 2) arrived();
    await three; // the first are answered when the third is there
    return `about ${body.messages[1]!.content}`;
  });
  const judge = judgeAt(`${server.url}/`, { concurrency: 3 });
  const progress: number[] = [];
  const answers = await judge.ask(requests("a", "b", "c", "a", "d", "e"), {
    onProgress: (done) => progress.push(done),
  });
  expect(answers.map(({ text }) => text)).toEqual(["a", "b", "c", "a", "d", "e"].map((name) => `about ${name}`));
  expect(server.asked).toHaveLength(5); // one was twice the same
  expect(progress).toEqual([0, 1, 2, 3, 4, 5]);
  expect(server.busiest()).toBe(3);
  expect(server.asked[0]).toEqual({
    path: "POST /v1/chat/completions",
    authorization: `Bearer ${KEY}`,
    body: { model: "judge-1", messages: requests("a")[0], n: 1, temperature: 0, max_tokens: 2048 },
  });
  expect(judge.spent).toEqual({ calls: 5, promptTokens: 500, completionTokens: 100 });
});

test("408, 409, 429, 5xx, timeouts and broken connections are tried again", async () => {
  const failures = [
    json(408, {}),
    json(409, { error: { message: "locked" } }),
    json(429, { error: { message: "slow down", code: "rate_limit_exceeded" } }, { "retry-after": "0" }),
    json(500, "oops"),
    json(503, { detail: "busy" }),
    () => {}, // no answer at all
    (response: { socket: { destroy(): void } | null }) => response.socket?.destroy(),
    (response: { writeHead(status: number, headers: object): { write(text: string): void }; destroy(): void }) => {
      response.writeHead(200, { "content-type": "application/json" }).write('{"choices": [');
      setTimeout(() => response.destroy(), 10);
    },
  ];
  const server = await judgeServer((_, n) => (failures[n] as never) ?? "Rating: [[7]]");
  const told: string[] = [];
  const judge = judgeAt(server.url, { timeoutMs: 1500, attempts: 9, onRetry: (why) => told.push(why) });
  expect(await judge.ask(requests("x"))).toMatchObject([{ text: "Rating: [[7]]", finishReason: "stop" }]);
  expect(server.asked).toHaveLength(9);
  expect(told.slice(0, 6)).toEqual([
    "HTTP 408: {}",
    "HTTP 409: locked",
    "HTTP 429: slow down",
    'HTTP 500: "oops"',
    "HTTP 503: busy",
    "no answer within 1.5 s",
  ]);
  expect(judge.spent.calls).toBe(1);
});

test("pauses double, are never the same, and are as long as the server asks", async () => {
  const asked = ["", "", "", "0.05"];
  const server = await judgeServer((_, n) =>
    n < 4 ? json(429, {}, asked[n] ? { "retry-after": asked[n]! } : {}) : "[[1]]",
  );
  const pauses: number[] = [];
  await judgeAt(server.url, { backoffMs: 8, onRetry: (_, pause) => pauses.push(pause) }).ask(requests("x"));
  for (const [i, pause] of pauses.slice(0, 3).entries()) {
    expect(pause).toBeGreaterThanOrEqual(4 * 2 ** i);
    expect(pause).toBeLessThanOrEqual(8 * 2 ** i);
  }
  expect(pauses[3]).toBeGreaterThanOrEqual(50);

  const dated = await judgeServer((_, n) =>
    n === 0 ? json(503, {}, { "retry-after": new Date(Date.now() + 2000).toUTCString() }) : "[[1]]",
  );
  const waited: number[] = [];
  await judgeAt(dated.url, { onRetry: (_, pause) => waited.push(pause) }).ask(requests("x"));
  expect(waited[0]).toBeGreaterThan(100); // the date has whole seconds, and some of it has passed

  const patient = await judgeServer(() => json(429, {}, { "retry-after": "7200" }));
  await expect(judgeAt(patient.url).ask(requests("x"))).rejects.toThrow(/JUDGE_UNAVAILABLE|asks to wait 120 minutes/);
  expect(patient.asked).toHaveLength(1);
});

test("what keeps failing is told with the last reason, and what was judged before is kept", async () => {
  const server = await judgeServer(({ body }) => (body.messages[1]!.content === "bad" ? json(500, "down") : "[[3]]"));
  const cache = temporary();
  const failing = judgeAt(server.url, { cache, attempts: 3, concurrency: 1 }).ask(requests("a", "b", "bad", "c"));
  await expect(failing).rejects.toMatchObject({
    code: "JUDGE_UNAVAILABLE",
    message: expect.stringMatching(/3 attempts, the last: HTTP 500: "down"/),
  });
  expect(server.asked.map(({ body }) => body.messages[1]!.content)).toEqual(["a", "b", "bad", "bad", "bad"]);
  expect(filesIn(cache)).toHaveLength(2);
});

test.each([
  [
    401,
    { error: { message: `Incorrect API key: ${KEY}`, code: "invalid_api_key" } },
    "JUDGE_KEY_REFUSED",
    /key is not/,
  ],
  [401, { error: `an answer that is cut: ${KEY.slice(0, -3)}` }, "JUDGE_KEY_REFUSED", /is cut: …/],
  [403, { error: "forbidden" }, "JUDGE_KEY_REFUSED", /forbidden.*MILORA_JUDGE_KEY/],
  [404, { error: { message: "no model judge-1" } }, "JUDGE_NOT_FOUND", /no model judge-1.*--judge-model \(judge-1\)/],
  [404, "<html>nothing here</html>", "JUDGE_NOT_FOUND", /usually ends in \/v1/],
  [
    400,
    { error: { message: "bad temperature", param: "temperature" } },
    "JUDGE_REQUEST_REFUSED",
    /--judge-temperature/,
  ],
  [422, { object: "error", message: "no", code: 422 }, "JUDGE_REQUEST_REFUSED", /HTTP 422: no/],
  [429, { error: { message: "pay", code: "insufficient_quota" } }, "JUDGE_REQUEST_REFUSED", /nothing left/],
  [200, { hello: 1 }, "JUDGE_ANSWER_INVALID", /no chat completion \(\{"hello":1\}\).*\/v1/],
  [200, { choices: [] }, "JUDGE_ANSWER_INVALID", /no chat completion/],
])("HTTP %d %j ends it at once: %s", async (status, body, code, message) => {
  const server = await judgeServer(() => json(status, body));
  const asked = judgeAt(server.url, { concurrency: 1 }).ask(requests("x", "y"));
  const error = await asked.then(
    () => undefined,
    (thrown: Error) => thrown,
  );
  expect(error).toMatchObject({ code, exitCode: 2, message: expect.stringMatching(message) });
  expect(error!.message).not.toContain(KEY.slice(0, 8));
  expect(server.asked).toHaveLength(1);
});

test("a page instead of an answer, and an address that has moved, are told as what they are", async () => {
  const page = await judgeServer(() => (response) => response.writeHead(200).end("<!doctype html><p>Hi</p>"));
  await expect(judgeAt(page.url).ask(requests("x"))).rejects.toThrow(/no chat completion \(<!doctype html>/);
  const moved = await judgeServer(
    () => (response) => response.writeHead(308, { location: "https://example.org/v1" }).end(),
  );
  await expect(judgeAt(moved.url).ask(requests("x"))).rejects.toThrow(/sends requests on to https:\/\/example.org\/v1/);
  await expect(judgeAt("http://127.0.0.1:9/v1", { attempts: 2 }).ask(requests("x"))).rejects.toThrow(
    /2 attempts, the last: .*(ECONNREFUSED|bad port)/,
  );
});

test("models that know the limit by its newer name are asked with that", async () => {
  const server = await judgeServer(({ body }) =>
    "max_tokens" in body
      ? json(400, {
          error: { message: "Use 'max_completion_tokens'", param: "max_tokens", code: "unsupported_parameter" },
        })
      : "[[4]]",
  );
  const judge = judgeAt(server.url, { concurrency: 1, temperature: undefined });
  expect(await judge.ask(requests("x", "y"))).toMatchObject([{ text: "[[4]]" }, { text: "[[4]]" }]);
  expect(server.asked.map(({ body }) => Object.keys(body).slice(3))).toEqual([
    ["max_tokens"],
    ["max_completion_tokens"],
    ["max_completion_tokens"],
  ]);
});

test("what a judge will not judge has no verdict, and ends nothing", async () => {
  const replies = [
    json(400, { error: { message: "filtered", code: "content_filter" } }),
    json(400, { error: { message: "too long", code: "context_length_exceeded" } }),
    json(200, completion(null, { refusal: "I will not." })),
  ];
  const server = await judgeServer((_, n) => replies[n]!);
  const judge = judgeAt(server.url, { concurrency: 1 });
  expect(await judge.ask(requests("x", "y", "z"))).toMatchObject([
    { text: "", finishReason: "content_filter" },
    { text: "", finishReason: "context_length_exceeded" },
    { text: "I will not.", finishReason: "stop" },
  ]);
});

test("nothing is paid for twice: judgements are on disk by all that decides them, without the key", async () => {
  const server = await judgeServer((_, n) => `[[${n}]]`);
  const cache = temporary();
  const first = await judgeAt(server.url, { cache, concurrency: 1 }).ask(requests("a", "b"));
  const again = judgeAt(`${server.url}/chat/completions`, { cache, key: "another" });
  expect(again.missing(requests("a", "b", "c", "c"))).toEqual(requests("c"));
  expect(await again.ask(requests("a", "b"))).toEqual(first);
  expect(server.asked).toHaveLength(2);
  for (const changed of [{ model: "judge-2" }, { temperature: 1 }, { temperature: undefined }, { maxTokens: 9 }]) {
    expect(judgeAt(server.url, { cache, ...changed }).missing(requests("a"))).toHaveLength(1);
  }
  expect(judgeAt("http://localhost:1/v1", { cache }).missing(requests("a"))).toHaveLength(1);
  for (const name of filesIn(cache)) expect(readFileSync(join(cache, name), "utf8")).not.toContain(KEY);

  // A file of another request in its place, or half of one, is no judgement of this.
  const [one, other] = filesIn(cache).map((name) => join(cache, name)) as [string, string];
  const own = readFileSync(one);
  writeFileSync(one, readFileSync(other));
  expect(judgeAt(server.url, { cache }).missing(requests("a", "b"))).toHaveLength(1);
  writeFileSync(one, own);
  expect(judgeAt(server.url, { cache }).missing(requests("a", "b"))).toHaveLength(0);
  writeFileSync(one, "half a");
  expect(judgeAt(server.url, { cache }).missing(requests("a", "b"))).toHaveLength(1);
});

test("when it is stopped, what is under way is awaited and kept, and nothing else is asked", async () => {
  const controller = new AbortController();
  const server = await judgeServer(async (_, n) => {
    if (n === 1) controller.abort(new Error("interrupted"));
    await new Promise((resolve) => setTimeout(resolve, 30));
    return "[[2]]";
  });
  const cache = temporary();
  const judge = judgeAt(server.url, { cache, concurrency: 2 });
  await expect(judge.ask(requests("a", "b", "c", "d"), { signal: controller.signal })).rejects.toThrow("interrupted");
  expect(server.asked).toHaveLength(2);
  expect(filesIn(cache)).toHaveLength(2);

  // Also while it waits for another attempt.
  const waiting = new AbortController();
  const busy = await judgeServer(() => json(429, {}, { "retry-after": "500" }));
  const stopped = judgeAt(busy.url, { onRetry: () => waiting.abort(new Error("interrupted")) });
  await expect(stopped.ask(requests("a"), { signal: waiting.signal })).rejects.toThrow("interrupted");
  expect(busy.asked).toHaveLength(1);
});

test("the estimate counts what is to be asked, and its price", async () => {
  const server = await judgeServer(() => "[[2]]");
  const judge = judgeAt(server.url);
  await judge.ask(requests("a"));
  const long = "word ".repeat(400); // 2000 bytes
  const cost = judgingCost(judge, requests("a", long, long, "b"), { prompt: 10, completion: 100 });
  const promptTokens = 500 + 2 + 8 + (1 + 2 + 8); // two messages each, "Judge." has 2
  expect(cost).toEqual({
    judgments: 4,
    known: 2,
    calls: 2,
    promptTokens,
    completionTokens: 600,
    mostCompletionTokens: 4096,
    money: (promptTokens * 10 + 600 * 100) / 1e6,
    mostMoney: (promptTokens * 10 + 4096 * 100) / 1e6,
  });
  expect(judgingCost(judge, requests("a"))).toMatchObject({ calls: 0, money: null });
});

test("addresses and keys: no secrets in the address, OpenAI's key to OpenAI alone", () => {
  expect(judgeUrl("http://localhost:8000/v1/")).toBe("http://localhost:8000/v1");
  expect(judgeUrl("https://api.openai.com/v1/chat/completions")).toBe("https://api.openai.com/v1");
  for (const [bad, problem] of [
    ["localhost:8000", "must begin with"],
    ["gpt-4", "is no address"],
    ["ftp://x/v1", "must begin with"],
    ["https://me:secret@x/v1", "keys come from the environment"],
    ["https://x/v1?key=secret", "must end with its path"],
  ] as const) {
    expect(() => judgeUrl(bad)).toThrow(problem);
    expect(() => judgeUrl(bad)).not.toThrow("secret");
  }
  vi.stubEnv("OPENAI_API_KEY", "openai's");
  vi.stubEnv("MILORA_JUDGE_KEY", "");
  onTestFinished(() => void vi.unstubAllEnvs());
  expect(judgeKey("https://api.openai.com/v1")).toBe("openai's");
  expect(judgeKey("https://api.openai.com.example.org/v1")).toBeUndefined();
  expect(judgeKey("http://localhost:8000/v1")).toBeUndefined();
  expect(judgeKey("http://localhost:8000/v1", "OPENAI_API_KEY")).toBe("openai's");
  expect(() => judgeKey("http://localhost:8000/v1", "NO_SUCH_KEY")).toThrow(/the environment has no NO_SUCH_KEY/);
  vi.stubEnv("MILORA_JUDGE_KEY", "the judge's");
  expect(judgeKey("http://localhost:8000/v1")).toBe("the judge's");
});
