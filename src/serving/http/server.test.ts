/** @file A server's edges: keys, bad bodies, clients that leave or dawdle, uploads, limits, probes, the end. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { entriesOf, tar } from "../adapters/testing.ts";
import { ask, makeAdapter, post, refusal, type Started, scratch, startServer, until } from "./testing.ts";

const { directory, remove } = scratch();
let open: Started;
let red: string;

beforeAll(async () => {
  red = await makeAdapter(directory, "lora", 1);
  open = await startServer(`${directory}/open`, {
    adapters: { red },
    adapterDirectories: [directory],
    http: { bodyBytes: 200_000, headersSeconds: 1, stallSeconds: 1 },
  });
});
afterAll(async () => {
  await open[Symbol.asyncDispose]();
  remove();
});

async function raw(url: string, text: string): Promise<{ socket: Socket; received: () => string }> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  await once(socket, "connect");
  let received = "";
  socket.setEncoding("utf8").on("data", (data: string) => {
    received += data;
  });
  socket.on("error", () => {});
  socket.write(text);
  return { socket, received: () => received };
}

function httpPost(path: string, body: string): string {
  return `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}

describe("bodies", () => {
  test.each([
    ["no JSON", "{", {}, 400, "JSON_INVALID"],
    ["no object", "[]", {}, 400, "REQUEST_INVALID"],
    ["nothing", "", {}, 400, "REQUEST_INVALID"],
    ["nested without end", "[".repeat(9000), {}, 400, "JSON_INVALID"],
    ["another kind", "a=b", { "content-type": "application/x-www-form-urlencoded" }, 415, "MEDIA_TYPE_UNSUPPORTED"],
    ["plain text", "{}", { "content-type": "text/plain" }, 415, "MEDIA_TYPE_UNSUPPORTED"],
    ["too large", JSON.stringify({ ...ask, prompt: "x".repeat(300_000) }), {}, 413, "PAYLOAD_TOO_LARGE"],
  ] as const)("%s", async (_, body, headers, status, code) => {
    expect(await refusal(await post(`${open.url}/v1/completions`, body, headers))).toEqual([status, code]);
  });

  test("__proto__ in a body changes nothing", async () => {
    const body = `{"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}, ${JSON.stringify(ask).slice(1)}`;
    expect((await post(`${open.url}/v1/completions`, body)).status).toBe(200);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  test("bytes that are no HTTP, and a head that never ends", async () => {
    const garbage = await raw(open.url, "\x00\x01\x02 nonsense\r\n\r\n");
    await once(garbage.socket, "close");
    expect(garbage.received()).toContain("400");
    const slow = await raw(open.url, "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    await once(slow.socket, "close");
    expect(slow.received()).toContain("408");
    const silent = await raw(open.url, "");
    await once(silent.socket, "close");
    expect((await fetch(`${open.url}/healthz`)).status).toBe(200);
  });
});

describe("clients", () => {
  test("one that leaves in the middle of a stream, or before its answer, frees everything", async () => {
    const { scheduler, state, registry, store } = open.server.services;
    for (const stream of [true, false]) {
      const body = JSON.stringify({ ...ask, model: "red", max_tokens: 900, ignore_eos: true, stream });
      const { socket, received } = await raw(open.url, httpPost("/v1/completions", body));
      await until(() => (stream ? received().includes("data: ") : scheduler.stats().running > 0));
      socket.destroy();
      await until(() => state.inFlight === 0);
      expect(scheduler.stats()).toMatchObject({ running: 0, waiting: 0 });
      expect((await registry.all())[0]).toMatchObject({ name: "red", inFlight: 0 });
      expect(store.quotas.state("default").running).toBe(0);
      const line = open.lines.at(-1)!;
      expect(line).toMatchObject({ status: 499, adapter: "red" });
      expect(line.completionTokens).toBeLessThan(900);
    }
  });

  test("one that sends several requests at once and leaves frees all of them", async () => {
    const { state, scheduler } = open.server.services;
    const stream = httpPost(
      "/v1/completions",
      JSON.stringify({ ...ask, max_tokens: 400, stream: true, ignore_eos: true }),
    );
    const list = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for (const others of [list, stream, stream + list.repeat(12)]) {
      const before = open.lines.length;
      const { socket, received } = await raw(open.url, stream + others);
      await until(() => received().includes("data:"));
      socket.destroy();
      await until(() => state.inFlight === 0);
      const { waiting, running } = scheduler.stats();
      expect(waiting + running).toBe(0);
      const told = open.lines.slice(before).filter(({ msg }) => msg === "request");
      expect(told).toHaveLength((stream + others).split("HTTP/1.1").length - 1);
      expect(told.every(({ status }) => status === 499)).toBe(true);
    }
  });

  test("one that does not read is dropped in the end, and holds up nobody", async () => {
    // More than the system's buffers hold: the probabilities of long prompts.
    const prompt = Array.from({ length: 24 }, (_, i) => Array.from({ length: 900 }, (_, j) => 5 + ((i + j) % 90)));
    const body = JSON.stringify({ ...ask, prompt, max_tokens: 0, echo: true, stream: true, logprobs: 20 });
    const { socket } = await raw(open.url, httpPost("/v1/completions", body));
    socket.pause();
    const quick = await post(`${open.url}/v1/completions`, ask);
    expect(quick.status).toBe(200);
    await until(() => open.server.services.state.inFlight === 0);
    expect(open.lines.at(-1)).toMatchObject({ status: 499, code: "CLIENT_CLOSED" });
    socket.destroy();
  });

  test("web pages of elsewhere are not answered by a server without keys", async () => {
    for (const headers of [{ origin: "https://evil.example" }, { origin: "null" }]) {
      expect(await refusal(await post(`${open.url}/v1/completions`, ask, headers))).toEqual([403, "FORBIDDEN"]);
    }
    const { socket, received } = await raw(
      open.url,
      "GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    );
    await once(socket, "close");
    expect(received()).toContain("403 Forbidden");
    const own = await post(`${open.url}/v1/completions`, ask, { origin: open.url });
    expect(own.status).toBe(200);
  });
});

describe("adapters", () => {
  test("are uploaded as tar, tar.gz or a form, used, listed, pinned and removed", async () => {
    const archive = await tar(entriesOf(red));
    const put = (name: string, body: Uint8Array<ArrayBuffer> | FormData, type?: string) =>
      fetch(`${open.url}/v1/adapters/${name}`, {
        ...{ method: "POST", body, ...(type !== undefined && { headers: { "content-type": type } }) },
      });
    const form = new FormData();
    form.set("file", new Blob([new Uint8Array(archive)]), "adapter.tar");
    const responses = [
      await put("up-tar", new Uint8Array(archive), "application/x-tar"),
      await put("up-gz", new Uint8Array(gzipSync(archive)), "application/gzip"),
      await put("up-form", form),
    ];
    expect(responses.map(({ status }) => status)).toEqual([201, 201, 201]);
    const bodies = (await Promise.all(responses.map((response) => response.json()))) as {
      id: string;
      digest: string;
    }[];
    expect(new Set(bodies.map(({ digest }) => digest)).size).toBe(1);
    expect(bodies[0]).toMatchObject({ id: "default/up-tar", owner: "default", method: "lora", rank: 4 });
    const answers = await Promise.all(
      ["red", "up-tar", "up-form"].map((model) => post(`${open.url}/v1/completions`, { ...ask, model })),
    );
    const texts = await Promise.all(
      answers.map(async (answer) => ((await answer.json()) as { choices: { text: string }[] }).choices[0]!.text),
    );
    expect(new Set(texts).size).toBe(1);
    const list = (await (await fetch(`${open.url}/v1/adapters`)).json()) as { data: Record<string, unknown>[] };
    expect(list.data.find(({ name }) => name === "up-tar")).toMatchObject({
      in_flight: 0,
      resident: true,
      pinned: false,
    });
    for (const [method, pinned] of [
      ["PUT", true],
      ["DELETE", false],
    ] as const) {
      await fetch(`${open.url}/v1/adapters/up-tar/pin`, { method });
      expect(await (await fetch(`${open.url}/v1/adapters/up-tar`)).json()).toMatchObject({ pinned });
    }
    for (const name of ["up-tar", "up-gz", "up-form"]) {
      const gone = await fetch(`${open.url}/v1/adapters/${name}`, { method: "DELETE" });
      expect(await gone.json()).toMatchObject({ deleted: true, in_flight: 0 });
    }
    expect(await refusal(await post(`${open.url}/v1/completions`, { ...ask, model: "up-tar" }))).toEqual([
      404,
      "MODEL_NOT_FOUND",
    ]);
  });

  test("a broken archive is refused and leaves nothing", async () => {
    const send = (name: string, body: string) =>
      fetch(`${open.url}/v1/adapters/${name}`, {
        method: "PUT",
        body,
        headers: { "content-type": "application/x-tar" },
      });
    expect(await refusal(await send("broken", "no archive at all"))).toEqual([400, "ARCHIVE_INVALID"]);
    expect(await refusal(await send("a%2Fb", "x"))).toEqual([400, "ADAPTER_NAME_INVALID"]);
    expect(await refusal(await send("tiny-llama", "x"))).toEqual([400, "ADAPTER_NAME_INVALID"]);
    expect(await refusal(await fetch(`${open.url}/v1/adapters/broken`))).toEqual([404, "MODEL_NOT_FOUND"]);
  });

  test("vLLM's routes read only below the directories that they may", async () => {
    const load = (lora_name: string, lora_path: string, more = {}) =>
      post(`${open.url}/v1/load_lora_adapter`, { lora_name, lora_path, ...more });
    const loaded = await load("hot", red);
    expect([loaded.status, await loaded.text()]).toEqual([200, "Success: LoRA adapter 'hot' added successfully."]);
    expect((await post(`${open.url}/v1/completions`, { ...ask, model: "hot" })).status).toBe(200);
    expect(await refusal(await load("hot", red))).toEqual([409, "ADAPTER_EXISTS"]);
    expect((await load("hot", red, { load_inplace: true })).status).toBe(200);
    for (const path of [
      "/etc",
      `${directory}/../..`,
      directory,
      `${directory}/none`,
      "test/fixtures/lora/qv-suffixes",
    ]) {
      expect(await refusal(await load("evil", path))).toEqual([403, "FORBIDDEN"]);
    }
    const unload = (lora_name: string) => post(`${open.url}/v1/unload_lora_adapter`, { lora_name });
    expect((await unload("hot")).status).toBe(200);
    expect(await refusal(await unload("hot"))).toEqual([404, "MODEL_NOT_FOUND"]);
  });
});

test("prompts and answers are in the log only where it was asked for", async () => {
  await using started = await startServer(`${directory}/told`, { logPrompts: true });
  const answer = await (await post(`${started.url}/v1/completions`, ask)).json();
  const { text } = (answer as { choices: { text: string }[] }).choices[0]!;
  expect(started.lines.find(({ prompts }) => prompts)).toMatchObject({ prompts: ["The cell"], answers: [[text]] });
  expect(JSON.stringify(open.lines)).not.toContain("The cell");
});

describe("probes and documents", () => {
  test("metrics tell times, tokens and routes by tenant and adapter, up to their cap", async () => {
    const routed = await makeAdapter(directory, "milora", 9);
    await using started = await startServer(`${directory}/metrics`, { adapters: { red, routed }, metricLabels: 1 });
    for (const model of ["routed", "red"]) await post(`${started.url}/v1/completions`, { ...ask, model });
    await post(`${started.url}/v1/completions`, { ...ask, model: "none" });
    const text = await (await fetch(`${started.url}/metrics`)).text();
    for (const line of [
      `milora_time_to_first_token_seconds_count{tenant="default",adapter="routed"} 1`,
      `milora_inter_token_seconds_count{tenant="default",adapter="routed"} 3`,
      `milora_generated_tokens_total{tenant="default",adapter="routed"} 4`,
      `milora_generated_tokens_total{tenant="default",adapter="other"} 4`,
      `milora_requests_total{tenant="default",adapter="other",outcome="length"} 1`,
      `milora_errors_total{code="MODEL_NOT_FOUND"} 1`,
      `milora_http_requests_total{route="/v1/completions",status="404"} 1`,
      "milora_adapters_resident 2",
      "milora_adapter_loads_total 2",
      `milora_sessions ${started.server.services.engine.sessions}`,
      `milora_kv_bytes ${started.server.services.engine.kvBytes}`,
    ]) {
      expect(text).toContain(line);
    }
    expect(text).toMatch(/^milora_sessions [1-9]/m);
    expect(text).toMatch(/^milora_kv_bytes [1-9]/m);
    expect(text).toMatch(/milora_routed_experts_total\{adapter="routed",layers="first",expert="\w+"\} \d/);
    expect(text).not.toContain('adapter="red"');
  });

  test("the document describes every route, and the page asks nobody for anything", async () => {
    const document = (await (await fetch(`${open.url}/openapi.json`)).json()) as {
      paths: Record<
        string,
        Record<string, { requestBody?: { content: Record<string, { schema: { properties: object } }> } }>
      >;
    };
    const paths = Object.keys(document.paths);
    for (const path of [
      "/v1/completions",
      "/v1/chat/completions",
      "/v1/models",
      "/v1/adapters",
      "/v1/adapters/{name}",
      "/v1/load_lora_adapter",
      "/healthz",
      "/readyz",
      "/metrics",
    ]) {
      expect(paths).toContain(path);
    }
    const { schema } = document.paths["/v1/completions"]!.post!.requestBody!.content["application/json"]!;
    expect(Object.keys(schema.properties)).toContain("logit_bias");
    const page = await fetch(`${open.url}/docs`);
    const html = await page.text();
    expect(html).toContain("/v1/chat/completions");
    expect(html).not.toMatch(/(src|href)\s*=\s*["']?(https?:)?\/\//);
    expect(html).not.toContain("<script");
    expect(page.headers.get("content-security-policy")).toContain("default-src 'none'");
  });
});

describe("the end", () => {
  test("running streams end whole, new requests are told, probes say so", async () => {
    const started = await startServer(`${directory}/end`);
    const long = { ...ask, max_tokens: 300, ignore_eos: true };
    const whole = await (await post(`${started.url}/v1/completions`, long)).json();
    const stream = await post(`${started.url}/v1/completions`, { ...long, stream: true });
    const text = stream.text();
    const stopped = started.server.stop();
    const ready = await fetch(`${started.url}/readyz`);
    expect([ready.status, ready.headers.get("retry-after")]).toEqual([503, "5"]);
    expect((await fetch(`${started.url}/healthz`)).status).toBe(200);
    const refused = await post(`${started.url}/v1/completions`, ask);
    expect(refused.headers.get("retry-after")).toBe("5");
    expect(await refusal(refused)).toEqual([503, "DRAINING"]);
    const events = (await text)
      .trim()
      .split("\n\n")
      .map((event) => event.slice("data: ".length));
    expect(events.at(-1)).toBe("[DONE]");
    const pieces = events
      .slice(0, -1)
      .map((event) => (JSON.parse(event) as { choices: { text: string }[] }).choices[0]?.text ?? "");
    expect(pieces.join("")).toBe((whole as { choices: { text: string }[] }).choices[0]!.text);
    await stopped;
    await expect(fetch(`${started.url}/healthz`)).rejects.toThrow();
  });

  test("those that take too long hear why", async () => {
    const started = await startServer(`${directory}/hurry`, { http: { drainSeconds: 0.2 } });
    const long = { ...ask, max_tokens: 1000, ignore_eos: true };
    const stream = await post(`${started.url}/v1/completions`, { ...long, stream: true, n: 8, temperature: 1 });
    const text = stream.text();
    await started.server.stop();
    const last = (await text).trim().split("\n\n").at(-1)!;
    expect(JSON.parse(last.slice("data: ".length))).toMatchObject({ error: { code: "DRAINING" } });
  });
});
