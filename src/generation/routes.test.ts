/** @file A prompt's route: no router in decoding, never changed after prefill, mixed in one batch, specialised at will. */
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exportOnnx } from "../graph/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import { AdapterCache } from "./derived.ts";
import { Engine } from "./engine.ts";
import { buildProgram, type Program, SessionCache, type SharedRoute } from "./graphs.ts";
import { BufferPool } from "./pool.ts";
import { Runner } from "./runner.ts";
import type { Shared } from "./shared.ts";
import { distance, loadBackbone } from "./testing.ts";

let backbone: Backbone;
let adapter: Adapter;

/** Fills every tensor with numbers that matter, so that routes differ and experts do something. */
function randomise(target: Adapter): Adapter {
  let state = 7;
  for (const [key, tensor] of target.tensors) {
    const scale = key.includes("router") ? 1 : 0.3;
    (tensor.data as Float32Array).forEach((_, i, data) => {
      state = (state * 1103515245 + 12345) % 2147483648;
      data[i] = (state / 2147483648 - 0.5) * scale;
    });
  }
  return target;
}

beforeAll(async () => {
  backbone = await loadBackbone("llama-gqa");
  adapter = randomise(Adapter.create(methodOf("milora"), { r: 4, top_k: 2, router_input: "rms" }, backbone.config, 1));
});
afterAll(() => {
  adapter.dispose();
  backbone.dispose();
});

const prompts = [[1, 5, 9], [1, 60], [7, 7, 7, 7, 7, 7], [1, 44, 23, 90, 11, 17, 3, 8, 61], [33]];

/** Names of everything in an exported program. */
function contents(program: Program): { inputs: string[]; weights: string[]; nodes: string[] } {
  const { graph } = fromBinary(ModelProtoSchema, exportOnnx(buildProgram(backbone, program)));
  return {
    inputs: graph!.input.map((value) => value.name!),
    weights: graph!.initializer.map((value) => value.name!),
    nodes: graph!.node.map((node) => `${node.name} ${node.opType}`),
  };
}

test("decode graphs hold no router, prefill graphs do", () => {
  const router = /router|pooler|gate\.weight|TopK|activation/i;
  const ignored = (name: string) => !name.includes("gate_proj"); // the feed-forward's own module
  const prefill = contents({ kind: "prefill", adapter });
  expect(prefill.inputs.filter((name) => router.test(name)).length).toBeGreaterThan(0);
  expect(prefill.nodes.some((name) => name.endsWith(" TopK"))).toBe(true);
  expect(prefill.inputs).toContain("promptMask");
  const active = [
    [0, 2],
    [1, 3],
    [4, 6],
  ];
  const route: SharedRoute = { route: active, key: "any" };
  for (const program of [
    { kind: "decode", adapter },
    { kind: "decode", adapter, route },
  ] as const) {
    const { inputs, weights, nodes } = contents(program);
    expect([...inputs, ...weights, ...nodes].filter((name) => router.test(name) && ignored(name))).toEqual([]);
    expect(inputs).not.toContain("promptMask");
  }
  // Under a route only the experts of the route are there: two modules of three layers, A and B each.
  const specialised = contents({ kind: "decode", adapter, route });
  expect(specialised.inputs.filter((name) => name.includes("lora_")).length).toBe(12);
  expect(specialised.inputs.filter((name) => name.startsWith("state."))).toEqual([]);
});

test("the state of a sequence stays as prefill made it, while rows come and go", async () => {
  using sessions = new SessionCache(backbone, { routes: 0 });
  using pool = new BufferPool();
  const runner = new Runner();
  using adapters = new AdapterCache(backbone, sessions, runner);
  const shared: Shared = {
    backbone,
    device: "cpu",
    sessions,
    adapters,
    pool,
    runner,
    context: 128,
    capacity: undefined,
  };
  using batch = new Batch(shared, prompts.length, { prompt: 9, longest: 40 });
  await batch.admit(prompts.slice(0, 3).map((tokens) => ({ tokens, adapter })));
  const size = batch.state("gates")!.length / prompts.length;
  const gates = (row: number) => [...batch.state("gates")!.subarray(row * size, (row + 1) * size)];
  const before = [0, 1, 2].map(gates);
  expect(new Set(before.map(String)).size).toBeGreaterThan(1);
  expect(before.flat().every((gate) => gate === 0 || gate === 1)).toBe(true);
  for (let i = 0; i < 4; i++) await batch.step([5, 6, 7]);
  expect([0, 1, 2].map(gates)).toEqual(before);
  await batch.admit([{ tokens: prompts[3]!, adapter }]);
  batch.drop(0); // the last row takes its place
  await batch.step([5, 6, 7]);
  expect([1, 2].map(gates)).toEqual(before.slice(1));
  expect(batch.route(0)).toEqual((await routesAlone())[3]);
});

async function routesAlone() {
  using engine = Engine.create(backbone);
  const inspected = await Promise.all(prompts.map((tokens) => engine.inspectTokens(tokens, adapter)));
  return inspected.map(({ route }) => route);
}

test("a batch of different routes gives what each prompt gives alone, at any batch size", async () => {
  const requests = prompts.map((prompt, i) => ({
    prompt,
    adapter,
    options: { maxNewTokens: 6 + 3 * i, eosTokenIds: [] },
  }));
  using single = Engine.create(backbone, { maxBatch: 1 });
  const alone = await single.generate(requests);
  expect(new Set(alone.map(({ route }) => JSON.stringify(route!.experts))).size).toBeGreaterThan(1);
  for (const maxBatch of [2, 3, 8]) {
    using engine = Engine.create(backbone, { maxBatch });
    const together = await engine.generate(requests);
    for (const [i, result] of together.entries()) {
      expect(result.tokens).toEqual(alone[i]!.tokens);
      expect(result.route).toEqual({ ...alone[i]!.route, probabilities: expect.anything() });
      expect(distance(result.logprobs, alone[i]!.logprobs)).toBeLessThan(1e-4);
    }
  }
});

// Where milora's operators are, what is not of the route costs nothing, and there are no such sessions.
test.skipIf(operators()).each(["straight_through", "probability"])(
  "a session specialised by route gives the same (%s)",
  async (gate) => {
    using gated = randomise(
      Adapter.create(methodOf("milora"), { r: 4, top_k: 2, router_input: "rms", gate }, backbone.config, 1),
    );
    const request = { prompt: prompts[3]!, adapter: gated, options: { maxNewTokens: 90, eosTokenIds: [] } };
    using general = Engine.create(backbone, { routeSessions: 0 });
    using specialised = Engine.create(backbone, { routeSessions: 2 });
    const [one] = await general.generate([request]);
    const [other] = await specialised.generate([request]);
    expect(general.sessions).toBe(3); // prefill, head, decode
    expect(specialised.sessions).toBe(4);
    expect(other!.tokens).toEqual(one!.tokens);
    expect(distance(other!.logprobs, one!.logprobs)).toBeLessThan(1e-4);
  },
);

test.skipIf(operators())("only so many specialised sessions are kept", async () => {
  using engine = Engine.create(backbone, { routeSessions: 1 });
  for (const prompt of prompts.slice(0, 3)) {
    await engine.generate([{ prompt, adapter, options: { maxNewTokens: 80, eosTokenIds: [] } }]);
  }
  expect(engine.sessions).toBe(4); // prefill, head, decode, and the last route's
});

test("adapters of one config share their sessions; each gives its own answers", async () => {
  using other = Adapter.create(methodOf("milora"), { r: 4, top_k: 2, router_input: "rms" }, backbone.config, 9);
  using engine = Engine.create(backbone);
  const options = { maxNewTokens: 8, eosTokenIds: [] };
  const prompt = prompts[3]!;
  const [bare, first, second] = await engine.generate([
    { prompt, options },
    { prompt, adapter, options },
    { prompt, adapter: other, options },
  ]);
  expect(engine.sessions).toBe(5); // head, and prefill and decode with and without an adapter
  expect(first!.tokens).not.toEqual(bare!.tokens);
  expect(second!.tokens).toEqual(bare!.tokens); // its B matrices are still zero
});
