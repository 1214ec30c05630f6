/** @file Who may ask a server, and how much of it: keys, isolation, quotas, overload, deadlines. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { entriesOf, tar } from "../adapters/testing.ts";
import { parseServerConfig } from "./config.ts";
import { Server } from "./server.ts";
import { ask, MODEL, makeAdapter, post, refusal, scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
let red: string;

beforeAll(async () => {
  red = await makeAdapter(directory, "lora", 1);
});
afterAll(remove);

describe("keys", () => {
  test("401, 403, 404, 429 are told apart, and nobody hears of others' adapters", async () => {
    await using started = await startServer(`${directory}/keys`, { auth: "required", adapters: { red } });
    const { store } = started.server.services;
    await store.tenants.create({ id: "acme", limits: { requestsPerMinute: 2 } });
    await store.tenants.create({ id: "bolt" });
    const { secret: acme } = await store.keys.create({ tenant: "acme" });
    const { secret: bolt } = await store.keys.create({ tenant: "bolt" });
    const { secret: admin, key } = await store.keys.create({ admin: true });
    const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` });
    const completions = `${started.url}/v1/completions`;

    for (const headers of [{}, bearer("mk_wrong"), { authorization: acme }, { authorization: "Basic eA==" }]) {
      const response = await post(completions, ask, headers as Record<string, string>);
      expect(response.headers.get("www-authenticate")).toBe("Bearer");
      expect(await refusal(response)).toEqual([401, "UNAUTHENTICATED"]);
    }
    // Who has no key does not even learn which routes there are.
    expect(await refusal(await fetch(`${started.url}/v1/none`))).toEqual([401, "UNAUTHENTICATED"]);
    expect((await fetch(`${started.url}/healthz`)).status).toBe(200);

    const body = { lora_name: "x", lora_path: red };
    expect(await refusal(await post(`${started.url}/v1/load_lora_adapter`, body, bearer(acme)))).toEqual([
      403,
      "FORBIDDEN",
    ]);
    expect(await refusal(await fetch(`${started.url}/metrics`, { headers: bearer(acme) }))).toEqual([403, "FORBIDDEN"]);
    expect((await fetch(`${started.url}/metrics`, { headers: bearer(admin) })).status).toBe(200);

    const archive = new Uint8Array(await tar(entriesOf(red)));
    const headers = { ...bearer(bolt), "content-type": "application/x-tar" };
    const uploaded = await fetch(`${started.url}/v1/adapters/own`, { method: "PUT", body: archive, headers });
    expect(uploaded.status).toBe(201);
    expect((await post(completions, { ...ask, model: "own" }, bearer(bolt))).status).toBe(200);
    const foreign = await post(completions, { ...ask, model: "own" }, bearer(acme));
    const unknown = await post(completions, { ...ask, model: "nix" }, bearer(acme));
    expect((await foreign.text()).replace("own", "nix")).toBe(await unknown.text());
    const listed = (await (await fetch(`${started.url}/v1/models`, { headers: bearer(acme) })).json()) as {
      data: { id: string }[];
    };
    expect(listed.data.map(({ id }) => id)).toEqual(["tiny-llama", "red"]);
    expect((await fetch(`${started.url}/v1/adapters/own`, { method: "DELETE", headers: bearer(acme) })).status).toBe(
      404,
    );

    expect((await post(completions, ask, bearer(acme))).status).toBe(200);
    expect((await post(completions, ask, bearer(acme))).status).toBe(200);
    const limited = await post(completions, ask, bearer(acme));
    expect(Number(limited.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await refusal(limited)).toEqual([429, "QUOTA_EXCEEDED"]);
    expect((await post(completions, ask, bearer(bolt))).status).toBe(200);

    await store.flush();
    const usage = await store.usage.report({ tenant: "bolt", by: ["tenant", "adapter"] });
    expect(usage.map(({ adapter, completionTokens }) => [adapter, completionTokens]).toSorted()).toEqual([
      ["", 4],
      ["bolt/own", 4],
    ]);
    await store.keys.revoke(key.id);
    expect((await fetch(`${started.url}/metrics`, { headers: bearer(admin) })).status).toBe(401);
    expect(JSON.stringify(started.lines)).not.toContain(acme);
  });

  test("an adapter is not loaded for who has no quota left", async () => {
    await using started = await startServer(`${directory}/quota`, {
      ...{ auth: "required", adapters: { red }, chatTemplate: "alpaca" },
    });
    const { store, registry } = started.server.services;
    await store.tenants.create({ id: "acme", limits: { requestsPerMinute: 1 } });
    const { secret } = await store.keys.create({ tenant: "acme" });
    const headers = { authorization: `Bearer ${secret}` };
    expect((await post(`${started.url}/v1/completions`, ask, headers)).status).toBe(200);
    const chat = { model: "red", messages: [{ role: "user", content: "Why?" }] };
    for (const stream of [false, true]) {
      const refused = await post(`${started.url}/v1/chat/completions`, { ...chat, stream }, headers);
      expect(await refusal(refused)).toEqual([429, "QUOTA_EXCEEDED"]);
    }
    expect(registry.stats.loads).toBe(0);
    await store.tenants.update("acme", { limits: { requestsPerMinute: null } });
    const answered = await post(`${started.url}/v1/chat/completions`, { ...chat, max_tokens: 2 }, headers);
    expect(answered.status).toBe(200);
    expect(registry.stats.loads).toBe(1);
  });

  test("a server that is open by itself wants keys from the first one on", async () => {
    await using started = await startServer(`${directory}/first`);
    const url = `${started.url}/v1/models`;
    expect((await fetch(url)).status).toBe(200);
    const made = await post(`${started.url}/admin/v1/keys`, { admin: true });
    const { secret } = (await made.json()) as { secret: string };
    expect((await fetch(url)).status).toBe(401);
    expect((await fetch(url, { headers: { authorization: `Bearer ${secret}` } })).status).toBe(200);
  });

  test("without keys it refuses to be reached from elsewhere, unless told so", async () => {
    const config = parseServerConfig({
      model: MODEL,
      data: `${directory}/public`,
      host: "0.0.0.0",
      port: 0,
      logLevel: "silent",
    });
    await expect(Server.start(config, { memory: true })).rejects.toMatchObject({ code: "FLAG_INVALID" });
    await using started = await startServer(`${directory}/public`, { host: "0.0.0.0", auth: "open" });
    const url = started.url.replace("0.0.0.0", "127.0.0.1");
    expect((await post(`${url}/v1/completions`, ask)).status).toBe(200);
    expect(await refusal(await post(`${url}/v1/load_lora_adapter`, {}))).toEqual([403, "FORBIDDEN"]);
  });
});

describe("overload", () => {
  test("is answered at once with 429, and those under way go on", async () => {
    await using started = await startServer(`${directory}/busy`, {
      limits: { maxBatch: 1, maxWaiting: 1, maxWaitingPerTenant: 1 },
    });
    const long = { ...ask, max_tokens: 60, ignore_eos: true };
    const responses = await Promise.all(Array.from({ length: 6 }, () => post(`${started.url}/v1/completions`, long)));
    const codes = await Promise.all(
      responses.map(async (response) => {
        if (response.status === 200) return "answered";
        expect(Number(response.headers.get("retry-after"))).toBeGreaterThan(0);
        return (await refusal(response)).join(" ");
      }),
    );
    expect(codes.filter((code) => code === "answered")).toHaveLength(2);
    expect(codes.filter((code) => code === "429 OVERLOADED")).toHaveLength(4);
  });

  test("a deadline ends a request with 408", async () => {
    await using started = await startServer(`${directory}/late`, { http: { deadlineSeconds: 0.15 } });
    const long = { ...ask, max_tokens: 1000, ignore_eos: true };
    expect(await refusal(await post(`${started.url}/v1/completions`, long))).toEqual([408, "DEADLINE_EXCEEDED"]);
    const stream = await post(`${started.url}/v1/completions`, { ...long, stream: true });
    const events = (await stream.text()).trim().split("\n\n");
    expect(JSON.parse(events.at(-1)!.slice("data: ".length))).toMatchObject({ error: { code: "DEADLINE_EXCEEDED" } });
    expect(events.length).toBeGreaterThan(1);
  });
});
