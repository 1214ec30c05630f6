/** @file What is derived from an adapter: computed once, shared by its calls, anew when the adapter's numbers change. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Adapter, methodOf } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Engine } from "./engine.ts";
import { distance, loadAdapter, loadBackbone } from "./testing.ts";

let backbone: Backbone;
let adapter: Adapter;
beforeAll(async () => {
  backbone = await loadBackbone("llama-gqa");
  adapter = loadAdapter("milora/dora", backbone);
});
afterAll(() => {
  adapter.dispose();
  backbone.dispose();
});

const tokens = [1, 44, 23, 90, 7];

test("calls that overlap share one derivation, and the engine takes back what it made", async () => {
  using engine = Engine.create(backbone);
  const found = await Promise.all(Array.from({ length: 4 }, () => engine.inspectTokens(tokens, adapter)));
  for (const { logits } of found) expect(logits).toEqual(found[0]!.logits);
  expect(engine.sessions).toBe(4); // prefill, derive, pick, head
});

test("changed numbers count once the engine is told to forget", async () => {
  using changing = loadAdapter("milora/dora", backbone);
  using engine = Engine.create(backbone);
  const before = await engine.inspectTokens(tokens, changing);
  for (const [key, tensor] of changing.tensors) {
    if (!key.includes("lora_B")) continue;
    (tensor.data as Float32Array).forEach((value, i, data) => {
      data[i] = 2 * value;
    });
  }
  const stream = engine.stream({ prompt: tokens, adapter: changing, options: { maxNewTokens: 3, eosTokenIds: [] } });
  await stream.next(); // in use while it is forgotten
  engine.forget(changing);
  const after = await engine.inspectTokens(tokens, changing);
  expect((await stream.next()).done).toBe(false);
  await stream.return(undefined as never);
  using fresh = Engine.create(backbone);
  const expected = await fresh.inspectTokens(tokens, changing);
  expect(distance(after.logits, expected.logits)).toBe(0);
  expect(distance(after.logits, before.logits)).toBeGreaterThan(1e-3);
});

test("a new DoRA adapter leaves the backbone as it is", async () => {
  using engine = Engine.create(backbone);
  using identity = Adapter.create(methodOf("dora"), { r: 4 }, backbone.config, 1, backbone);
  const [one, other] = [await engine.inspectTokens(tokens, identity), await engine.inspectTokens(tokens)];
  expect(distance(one.logits, other.logits)).toBeLessThan(1e-4);
});
