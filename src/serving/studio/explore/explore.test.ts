/** @file The routing explorer over HTTP: routes as generation reports them, whose adapters, what it costs, what is refused. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ask, makeAdapter, post, refusal, type Started, scratch, startServer, until } from "../../http/testing.ts";
import type { ExploreDataLine, ExploreResult, NamedData, RoutedAdapter } from "../types.ts";

const files = scratch();
let started: Started;
let admin: Record<string, string>;
/** Bearer heads of two tenants. */
let own: Record<string, string>;
let other: Record<string, string>;
let ownTenant: string;

const bearer = (secret: string): Record<string, string> => ({ authorization: `Bearer ${secret}` });

beforeAll(async () => {
  const [milora, second, lora] = await Promise.all([
    makeAdapter(files.directory, "milora", 3),
    makeAdapter(files.directory, "milora", 4),
    makeAdapter(files.directory, "lora", 5),
  ]);
  const limits = { maxPrefillTokens: 128 };
  started = await startServer(`${files.directory}/data`, {
    auth: "required",
    adapters: { milora, second, lora },
    limits,
  });
  const { store, registry } = started.server.services;
  admin = bearer((await store.keys.create({ admin: true })).secret);
  const make = async (id: string) => {
    const tenant = await store.tenants.create({ id });
    return { tenant, secret: (await store.keys.create({ tenant: tenant.id })).secret };
  };
  const [a, b] = [await make("first"), await make("other")];
  [own, other, ownTenant] = [bearer(a.secret), bearer(b.secret), a.tenant.id];
  await registry.install({ directory: milora }, { owner: a.tenant.id, name: "mine" });
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  files.remove();
});

const explore = (body: object, headers = own): Promise<Response> =>
  post(`${started.url}/studio/v1/explore`, body, headers);
const exploreData = (body: object, headers = own, signal?: AbortSignal): Promise<Response> =>
  fetch(`${started.url}/studio/v1/explore/data`, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", ...headers },
    ...(signal && { signal }),
  });

async function explored(body: object): Promise<ExploreResult> {
  const response = await explore(body);
  expect(response.status).toBe(200);
  return (await response.json()) as ExploreResult;
}

async function linesOf(response: Response): Promise<ExploreDataLine[]> {
  expect(response.status).toBe(200);
  expect(response.headers.get("content-type")).toMatch(/^application\/x-ndjson/);
  const text = await response.text();
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as ExploreDataLine);
}

async function figureOf(body: object) {
  const last = (await linesOf(await exploreData(body))).at(-1)!;
  if (!("result" in last)) throw new Error(JSON.stringify(last));
  return last.result;
}

async function usageOf(adapter: string): Promise<{ promptTokens: number; requests: number }> {
  const { store } = started.server.services;
  const [row] = await store.usage.report({ tenant: ownTenant, adapter });
  return { promptTokens: row?.promptTokens ?? 0, requests: row?.requests ?? 0 };
}

describe("a prompt", () => {
  test("goes the ways that generation reports, token by token", async () => {
    const prompt = "What is a cell? Ärger – 細胞 🧬";
    const { tokens, routes } = await explored({ adapters: ["mine", "second"], prompt });
    expect(tokens.map(({ text }) => text).join("")).toContain(prompt);
    expect(tokens.filter(({ text }) => text === "").length).toBeGreaterThan(0); // parts of characters
    for (const { text, bytes } of tokens) expect(text === "").toBe(bytes !== undefined);
    expect(routes.map(({ adapter, method, pooler }) => [adapter, method, pooler])).toEqual([
      ["mine", "milora", "self_attention"],
      ["second", "milora", "self_attention"],
    ]);
    for (const { adapter, experts, layers } of routes) {
      const answer = await post(
        `${started.url}/v1/completions`,
        { ...ask, model: adapter, prompt: tokens.map(({ id }) => id), x_milora: { routes: true } },
        own,
      );
      const { x_milora } = (await answer.json()) as {
        x_milora: { routes: { experts: string[]; layers: { chosen: string[]; probabilities: number[] }[] }[] };
      };
      const reported = x_milora.routes[0]!;
      expect(experts).toEqual(reported.experts);
      expect(layers.map(({ chosen }) => chosen.map((i) => experts[i]))).toEqual(
        reported.layers.map(({ chosen }) => chosen),
      );
      for (const [layer, { probabilities, attention }] of layers.entries()) {
        for (const [i, p] of probabilities.entries())
          expect(p).toBeCloseTo(reported.layers[layer]!.probabilities[i]!, 5);
        expect(attention).toHaveLength(tokens.length);
        expect(attention!.reduce((a, b) => a + b)).toBeCloseTo(1, 5);
      }
    }
    const [first, second] = routes;
    expect(first!.layers).not.toEqual(second!.layers);
    const { routes: others } = await explored({ adapters: ["mine"], prompt: "Who wrote this?" });
    expect(others[0]!.layers).not.toEqual(first!.layers);
  });

  test("as an instruction is the prompt of training", async () => {
    const { tokens } = await explored({ adapters: ["mine"], prompt: "Why?", format: "alpaca" });
    expect(tokens.map(({ text }) => text).join("")).toContain("### Instruction:\nWhy?\n\n### Response:\n");
  });

  test("is charged as it was read, and refused without a quota", async () => {
    const { store } = started.server.services;
    const before = await usageOf("second");
    const { tokens } = await explored({ adapters: ["second"], prompt: "What does it cost?" });
    const after = await usageOf("second");
    expect(after.promptTokens - before.promptTokens).toBe(tokens.length);
    expect(after.requests - before.requests).toBe(1);
    await store.tenants.create({ id: "poor", limits: { tokensPerMinute: 5 } });
    const poor = bearer((await store.keys.create({ tenant: "poor" })).secret);
    const again = { adapters: ["second"], prompt: "Again and again and again" };
    expect((await explore(again, poor)).status).toBe(200); // more than a whole quota, which is there
    expect(await refusal(await explore(again, poor))).toEqual([429, "QUOTA_EXCEEDED"]);
    expect(await refusal(await exploreData({ adapter: "second", text: rows(2) }, poor))).toEqual([
      429,
      "QUOTA_EXCEEDED",
    ]);
    expect(store.quotas.state("poor").running).toBe(0);
  });

  test("is refused for what does not route, each named", async () => {
    const response = await explore({ adapters: ["lora", "mine", "tiny-llama"], prompt: "x" });
    expect(response.status).toBe(400);
    const { error } = (await response.json()) as { error: { code: string; message: string } };
    expect(error.code).toBe("NOT_ROUTED");
    expect(error.message).toMatch(/"lora" is an adapter of lora[\s\S]*"tiny-llama" is the backbone/);
    expect(error.message).not.toContain("mine");
  });

  test("of somebody else's adapter is as of one that does not exist", async () => {
    const message = async (adapter: string, headers: Record<string, string>) => {
      const response = await explore({ adapters: [adapter], prompt: "x" }, headers);
      const { error } = (await response.json()) as { error: { message: string } };
      return [response.status, error.message.replaceAll(adapter, "NAME")];
    };
    const missing = await message("nothing", other);
    expect(missing[0]).toBe(404);
    expect(await message("mine", other)).toEqual(missing);
    expect(await message(`${ownTenant}/mine`, other)).toEqual(missing);
    const data = await exploreData({ adapter: `${ownTenant}/mine`, name: "authors/dev" }, other);
    expect(await refusal(data)).toEqual([404, "MODEL_NOT_FOUND"]);
    expect((await explore({ adapters: [`${ownTenant}/mine`], prompt: "x" }, admin)).status).toBe(200);
    expect((await explore({ adapters: ["mine"], prompt: "x" }, {})).status).toBe(401);
  });

  test("may go to the adapters that are listed, and to no others", async () => {
    const listed = async (headers: Record<string, string>) => {
      const response = await fetch(`${started.url}/studio/v1/explore`, { headers });
      const { adapters } = (await response.json()) as { adapters: RoutedAdapter[] };
      expect(adapters.every(({ method, rank }) => method === "milora" && rank === 4)).toBe(true);
      return adapters.map(({ name }) => name);
    };
    expect(await listed(own)).toEqual(["milora", "mine", "second"]);
    expect(await listed(other)).toEqual(["milora", "second"]);
    expect(await listed(admin)).toEqual([`${ownTenant}/mine`, "milora", "second"]);
    for (const name of await listed(admin)) {
      expect((await explore({ adapters: [name], prompt: "x" }, admin)).status).toBe(200);
    }
  });

  test.each([
    [{ adapters: [], prompt: "x" }, "REQUEST_INVALID"],
    [{ adapters: ["mine", "mine"], prompt: "x" }, "REQUEST_INVALID"],
    [{ adapters: ["a", "b", "c", "d", "e"], prompt: "x" }, "REQUEST_INVALID"],
    [{ adapters: ["mine"], prompt: "x", format: "jinja" }, "REQUEST_INVALID"],
    [{ adapters: ["mine"], prompt: "x".repeat(10_000) }, "PROMPT_TOO_LONG"],
  ])("%# is refused", async (body, code) => {
    expect(await refusal(await explore(body))).toEqual([400, code]);
  });
});

const rows = (count: number, words = 8): string =>
  Array.from({ length: count }, (_, i) => {
    const instruction = Array.from({ length: words }, (_, t) => `word${(7 * i + 11 * t) % 97}`).join(" ");
    return JSON.stringify({ instruction, output: "yes", answer: i % 2 ? "odd" : "even" });
  }).join("\n");

describe("a data set", () => {
  test("by name: shares of the prompts, and what routes tell of the answers", async () => {
    const response = await fetch(`${started.url}/studio/v1/data`, { headers: own });
    const { data } = (await response.json()) as { data: NamedData[] };
    expect(data).toContainEqual({ name: "subjects/dev", rows: 150 });
    expect(data.map(({ name }) => name).some((name) => name.startsWith("mt_bench"))).toBe(false);
    const lines = await linesOf(await exploreData({ adapter: "mine", name: "subjects/dev", limit: 30 }));
    const steps = lines.slice(0, -1) as { done: number; total: number }[];
    expect(steps.length).toBeGreaterThan(1);
    expect(steps.map(({ done }) => done)).toEqual(steps.map(({ done }) => done).toSorted((a, b) => a - b));
    expect(steps.at(-1)).toEqual({ done: 30, total: 30 });
    const { result } = lines.at(-1) as Extract<ExploreDataLine, { result: unknown }>;
    expect(result.rows).toBe(30);
    expect(result.active).toHaveLength(6);
    for (const shares of result.active) expect(shares.reduce((a, b) => a + b)).toBeCloseTo(3, 6); // top-3
    expect(result.entropy.every((bits) => bits > 0 && bits <= Math.log2(7))).toBe(true);
    expect(result.information).toHaveLength(6);
    expect(result.labelEntropy).toBeGreaterThan(1);
  });

  test("as JSON lines, a JSON list and CSV gives the same, and shares are those of its prompts one by one", async () => {
    const text = rows(6);
    const list = text.split("\n").map((line) => JSON.parse(line) as Record<string, string>);
    const csv = ["instruction,output,answer", ...list.map((row) => Object.values(row).join(","))].join("\n");
    const figure = await figureOf({ adapter: "mine", text, format: "jsonl" });
    expect(await figureOf({ adapter: "mine", text: JSON.stringify(list), format: "json" })).toEqual(figure);
    expect(await figureOf({ adapter: "mine", text: csv, format: "csv" })).toEqual(figure);
    const counts = figure.active.map((layer) => layer.map(() => 0));
    for (const { instruction } of list) {
      const { routes } = await explored({ adapters: ["mine"], prompt: instruction, format: "alpaca" });
      for (const [layer, { chosen }] of routes[0]!.layers.entries())
        for (const i of chosen) counts[layer]![i]! += 1 / 6;
    }
    for (const [layer, shares] of figure.active.entries()) {
      for (const [i, share] of shares.entries()) expect(share).toBeCloseTo(counts[layer]![i]!, 6);
    }
  });

  test("needs no answers", async () => {
    const figure = await figureOf({
      adapter: "mine",
      text: '{"prompt": "One"}\n{"instruction": "Two"}',
      template: "none",
    });
    expect(figure).toMatchObject({ rows: 2, information: [], informationByChance: [], labelEntropy: 0 });
  });

  test("with bad rows is refused, each named", async () => {
    const long = JSON.stringify({ prompt: "word ".repeat(2000) });
    const text = ['{"prompt": "One"}', "{not json", '{"question": "Two"}', '{"prompt": 3}'].join("\n");
    const refused = async (body: object) => {
      const response = await exploreData({ adapter: "mine", ...body });
      expect(response.status).toBe(400);
      return ((await response.json()) as { error: { message: string } }).error.message;
    };
    expect(await refused({ text })).toMatch(
      /3 bad rows of 4[\s\S]*row 2: not valid JSON[\s\S]*row 3: needs "instruction"[^\n]*has "question"\n?[\s\S]*row 4: "prompt" is a number/,
    );
    expect(await refused({ text: `{"prompt": "One"}\n${long}` })).toMatch(
      /row 2: its prompt has \d+ tokens, the context/,
    );
    expect(await refused({ text: "[1, 2", format: "json" })).toMatch(/not valid JSON/);
    expect(await refused({ text: "a,b\n1", format: "csv" })).toMatch(/row 1: has 1 fields, the header 2/);
    expect(await refused({ text: "\n\n" })).toMatch(/has no rows/);
    expect(await refused({ name: "../secrets" })).toMatch(/no data set of this name; there are authors\/dev/);
    expect(await refused({ name: "authors/dev", text })).toMatch(/either the name of a data set or the text/);
    expect(await refused({})).toMatch(/either the name of a data set or the text/);
    // A bad row behind the limit does not matter.
    expect((await figureOf({ adapter: "mine", text, limit: 1 })).rows).toBe(1);
  });

  test("is given up when the client leaves, and what was read is charged", async () => {
    const { scheduler, store } = started.server.services;
    const before = await usageOf(`${ownTenant}/mine`);
    const leave = new AbortController();
    const response = await exploreData({ adapter: "mine", text: rows(400, 40) }, own, leave.signal);
    const reader = response.body!.getReader();
    let done = 0;
    while (done === 0) {
      const { value } = await reader.read();
      const step = JSON.parse(new TextDecoder().decode(value).trimEnd().split("\n").at(-1)!) as { done: number };
      expect(step).toMatchObject({ total: 400 });
      done = step.done;
    }
    leave.abort();
    await reader.read().catch(() => {});
    await until(() => store.quotas.state(ownTenant).running === 0);
    expect(scheduler.stats()).toMatchObject({ waiting: 0, running: 0 });
    const after = await usageOf(`${ownTenant}/mine`);
    expect(after.promptTokens).toBeGreaterThan(before.promptTokens);
    const whole = await exploreData({ adapter: "second", text: rows(400, 40) });
    expect(whole.status).toBe(200);
    await whole.body!.cancel();
    await until(() => store.quotas.state(ownTenant).running === 0);
  });

  test("leaves others their turns: a short request is answered while it goes on", async () => {
    const order: string[] = [];
    const data = exploreData({ adapter: "mine", text: rows(80, 40) }).then(async (response) => {
      const reader = response.body!.getReader();
      await reader.read();
      order.push("begun");
      while (!(await reader.read()).done);
      order.push("figure");
    });
    await until(() => order.length > 0);
    const answer = await post(`${started.url}/v1/completions`, ask, other);
    expect(answer.status).toBe(200);
    order.push("answer");
    await data;
    expect(order).toEqual(["begun", "answer", "figure"]);
  });
});
