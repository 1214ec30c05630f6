/** @file Sessions by program: made beside everything else, once for all who ask at a time, and closed with their cache. */
import { setImmediate } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exportOnnx } from "../graph/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import type { Session } from "../runtime/index.ts";
import { Engine } from "./engine.ts";
import { buildProgram, type Program, SessionCache, type SharedRoute } from "./graphs.ts";
import { loadBackbone } from "./testing.ts";

let backbone: Backbone;
let adapter: Adapter;
beforeAll(async () => {
  backbone = await loadBackbone("llama-gqa");
  adapter = Adapter.create(methodOf("milora"), { r: 4, top_k: 1 }, backbone.config, 1);
});
afterAll(() => {
  adapter.dispose();
  backbone.dispose();
});

const route = (expert: number): SharedRoute => {
  const experts = Array.from({ length: backbone.config.numLayers }, () => [expert]);
  return { route: experts, key: JSON.stringify(experts) };
};
const routed = (expert: number): Program => ({ kind: "decode", adapter, route: route(expert) });

test("prompts and decoding read the same quantised weights, which are then packed once", () => {
  using quantised = Backbone.random(backbone.config, { weights: "int4" });
  const weightsOf = (program: Program) => {
    const model = exportOnnx(buildProgram(quantised, program));
    return new Set(
      Buffer.from(model)
        .toString("latin1")
        .match(/[a-z][\w.]+\.q4\b/g),
    );
  };
  using prefix = Adapter.create(methodOf("iapt"), {}, backbone.config, 1); // keys and values of its own rows
  for (const adapter of [undefined, prefix]) {
    const own = new Set([...weightsOf({ kind: "prefill", adapter }), ...weightsOf({ kind: "head", adapter })]);
    expect(own.size).toBe(4 * quantised.config.numLayers + 1);
    expect(weightsOf({ kind: "decode", adapter })).toEqual(own);
  }
});

test("others run while a session is made, and whoever asks for it meanwhile gets the same", async () => {
  using cache = new SessionCache(backbone, { routes: 2 });
  const order: string[] = [];
  const first = cache.lease(routed(0)).finally(() => order.push("session"));
  void setImmediate().then(() => order.push("event loop"));
  const second = cache.lease(routed(0));
  using one = await first;
  using two = await second;
  expect(two.session).toBe(one.session);
  expect(order).toEqual(["event loop", "session"]);
  expect(cache.size).toBe(1);
});

test("no more specialised ones are kept, also when all are asked for at a time; those in use stay open", async () => {
  using cache = new SessionCache(backbone, { routes: 1 });
  const leases = await Promise.all([0, 1, 2].map((expert) => cache.lease(routed(expert))));
  expect(cache.size).toBe(3);
  for (const lease of leases) lease.session.bind().dispose(); // throws for one that was closed
  for (const lease of leases) lease[Symbol.dispose]();
  for (const expert of [3, 4, 5]) (await cache.lease(routed(expert)))[Symbol.dispose]();
  expect(cache.size).toBe(3);
  expect(() => leases[0]!.session.bind()).toThrow(expect.objectContaining({ code: "SESSION_CLOSED" }));
});

test("no more stages are kept than of eight method configs, and of those that were used last", async () => {
  using cache = new SessionCache(backbone, { routes: 1 });
  const { numLayers } = backbone.config;
  const configs = Array.from({ length: 9 }, (_, i) =>
    Adapter.create(methodOf("lora"), { r: i + 1 }, backbone.config, 1),
  );
  const read = async (adapter: Adapter) => {
    const sessions: Session[] = [];
    for (let from = 0; from < numLayers; from++) {
      using lease = await cache.lease({ kind: "prefill", adapter, part: { layers: { from, to: from + 1 } } });
      sessions.push(lease.session);
    }
    return sessions;
  };
  const first = await Promise.all(configs.slice(0, 8).map(read));
  expect(cache.size).toBe(8 * numLayers);
  expect(await read(configs[0]!)).toEqual(first[0]);
  await read(configs[8]!);
  expect(cache.size).toBe(8 * numLayers);
  expect(await read(configs[0]!)).toEqual(first[0]);
  expect(() => first[1]![0]!.bind()).toThrow(expect.objectContaining({ code: "SESSION_CLOSED" }));
  for (const adapter of configs) adapter.dispose();
});

test("a cache that closes while sessions are made closes them, too", async () => {
  const cache = new SessionCache(backbone, { routes: 2 });
  using kept = await cache.lease({ kind: "head", adapter: undefined });
  const making = [cache.lease(routed(0)), cache.lease(routed(0)), cache.lease(routed(1))];
  cache[Symbol.dispose]();
  const closed = { status: "rejected", reason: { code: "ENGINE_CLOSED" } };
  expect(await Promise.allSettled(making)).toMatchObject([closed, closed, closed]);
  expect(() => kept.session.bind()).toThrow(expect.objectContaining({ code: "SESSION_CLOSED" }));
  expect(cache.size).toBe(0);
  await expect(cache.lease(routed(0))).rejects.toMatchObject({ code: "ENGINE_CLOSED" });
});

test("a session that cannot be made is not kept, and tried again", async () => {
  using cache = new SessionCache(backbone, { routes: 2, session: { config: { "": "1" } } });
  for (let round = 0; round < 2; round++) {
    const both = await Promise.allSettled([cache.lease(routed(0)), cache.lease(routed(0))]);
    expect(both).toMatchObject([{ reason: { code: "RUNTIME_FAILED" } }, { reason: { code: "RUNTIME_FAILED" } }]);
    expect(cache.size).toBe(0);
  }
});

test("an engine is busy while a call waits for its session", async () => {
  const engine = Engine.create(backbone);
  const call = engine.generate([{ prompt: [1, 5, 9], adapter, options: { maxNewTokens: 2, eosTokenIds: [] } }]);
  expect(() => engine.dispose()).toThrow(expect.objectContaining({ code: "ENGINE_BUSY" }));
  expect((await call)[0]!.tokens.length).toBe(2);
  engine.dispose();
  expect(engine.sessions).toBe(0);
});
