/** @file Reading and decoding on the devices that are here, against the CPU: logits, greedy tokens, batches that change. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Backbone } from "../models/index.ts";
import { availableDevices, type DeviceName, Tensor } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import type { KvCache } from "./cache.ts";
import { Engine, type EngineOptions } from "./engine.ts";
import { BufferPool } from "./pool.ts";
import type { GenerationRequest } from "./request.ts";
import { Bench, distance, loadBackbone, moved, smallConfig } from "./testing.ts";

const devices = availableDevices().filter((device) => device !== "cpu");
const backbone = await loadBackbone("llama-gqa");
const adapters = Object.fromEntries(
  ["lora", "milora", "dora", "p-tuning-v2", "ia3"].map((name) => [name, moved(backbone, name)]),
);
afterAll(() => {
  for (const adapter of Object.values(adapters)) adapter.dispose();
  backbone.dispose();
});

const prompts = [[5, 9, 33, 2], [7], [11, 4, 60, 8, 21, 3], [90, 17]];
const request = (prompt: number[], adapter: string, maxNewTokens: number): GenerationRequest => ({
  prompt,
  ...(adapter !== "bare" && { adapter: adapters[adapter]! }),
  options: { maxNewTokens, temperature: 0, eosTokenIds: [] },
});

async function tokensOf(options: EngineOptions, requests: readonly GenerationRequest[]): Promise<number[][]> {
  using engine = Engine.create(backbone, options);
  return (await engine.generate(requests)).map(({ tokens }) => [...tokens]);
}

describe.skipIf(devices.length === 0)("a device other than the CPU (skipped where there is none)", () => {
  describe.each(devices)("%s", (device) => {
    it.each(["bare", ...Object.keys(adapters)])("has the CPU's logits and greedy tokens: %s", async (name) => {
      const inspect = async (where: EngineOptions["device"]) => {
        using engine = Engine.create(backbone, { device: where });
        return await engine.inspectTokens(prompts[2]!, adapters[name]);
      };
      const [wanted, found] = [await inspect("cpu"), await inspect(device)];
      expect(distance(found.logits, wanted.logits)).toBeLessThan(1e-3);
      expect(distance(found.logprobs, wanted.logprobs)).toBeLessThan(1e-3);
      // Of different lengths, so that rows leave while others go on.
      const requests = prompts.map((prompt, i) => request(prompt, name, 3 + 2 * i));
      expect(await tokensOf({ device }, requests)).toEqual(await tokensOf({}, requests));
    });

    // Capped scores and windows; norms of queries and keys; heads narrower than the cache's.
    it.each(["gemma2-local", "gemma2", "qwen3", "llama-narrow"])("knows other families: %s", async (name) => {
      using family = await Backbone.load(join(import.meta.dirname, "../../test/fixtures/families", name));
      const tokens = Array.from({ length: 40 }, (_, i) => 3 + ((7 * i) % 80));
      const results = async (where: DeviceName) => {
        using engine = Engine.create(family, { device: where });
        const { logits } = await engine.inspectTokens(tokens);
        return { logits, tokens: (await engine.generate([request(tokens, "bare", 6)]))[0]!.tokens };
      };
      const [wanted, found] = [await results("cpu"), await results(device)];
      expect(distance(found.logits, wanted.logits)).toBeLessThan(1e-3);
      expect([...found.tokens]).toEqual([...wanted.tokens]);
    });

    it("steps adapters of several methods, more prompts than rows, and caches that grow", async () => {
      const names = ["lora", "bare", "milora", "lora", "p-tuning-v2", "bare"];
      const requests = names.map((name, i) => request(prompts[i % 4]!, name, 4 + 3 * (i % 3)));
      const options = { maxBatch: 3, capacity: 6 };
      expect(await tokensOf({ ...options, device }, requests)).toEqual(await tokensOf(options, requests));
    });

    it("searches with beams, and goes on from prompts it has kept", async () => {
      const beams = [{ ...request(prompts[0]!, "lora", 5), options: { maxNewTokens: 5, beams: 3, eosTokenIds: [] } }];
      expect(await tokensOf({ device }, beams)).toEqual(await tokensOf({}, beams));
      using engine = Engine.create(backbone, { device, prefixCache: { bytes: 2 ** 24 } });
      const long = Array.from({ length: 40 }, (_, i) => 3 + ((7 * i) % 80));
      for (const prompt of [long, [...long, 40, 41]]) {
        const [result] = await engine.generate([request(prompt, "lora", 4)]);
        expect([[...result!.tokens]]).toEqual(await tokensOf({}, [request(prompt, "lora", 4)]));
      }
      expect(engine.prefixCache!.hits).toBeGreaterThan(0);
    });

    it.each(["bare", "milora", "p-tuning-v2"])("reads long prompts slice by slice: %s", async (name) => {
      const tokens = Array.from({ length: 40 }, (_, i) => 3 + ((7 * i) % 80));
      const logits = async (where: DeviceName): Promise<Float32Array> => {
        using bench = new Bench(backbone, undefined, 120, undefined, where);
        using batch = new Batch(bench.shared, 2, { prompt: 4, longest: 60 });
        await batch.admit([{ tokens: prompts[0]! }]);
        using admission = batch.begin([{ tokens, adapter: adapters[name] }], { sliceTokens: 16 });
        while (admission.waiting > 0) {
          await admission.advance();
          await batch.step(Array.from({ length: batch.rows }, () => 9));
        }
        return batch.logitsOf(1).slice();
      };
      expect(distance(await logits(device), await logits("cpu"))).toBeLessThan(1e-3);
    });

    it("scores several continuations of a prompt", async () => {
      const rows = [[1], [2, 3], [4, 5, 6]].map((continuation) => ({ prompt: prompts[2]!, continuation }));
      const score = async (where: EngineOptions["device"]) => {
        using engine = Engine.create(backbone, { device: where });
        return (await engine.score(rows, adapters.milora)).flatMap(({ logprobs }) => [...logprobs]);
      };
      expect(distance(await score(device), await score("cpu"))).toBeLessThan(1e-3);
    });

    it("keeps what rows hold however they are cut and joined, and frees its memory", () => {
      using pool = new BufferPool(2, device);
      const run = (cache: KvCache): number[] => {
        const fill = (first: number, rows: number, number: number): void => {
          for (const { key, value } of cache.layers(first, rows)) {
            for (const tensor of [key, value]) {
              using numbers = Tensor.from(
                "float32",
                tensor.shape,
                Float32Array.from({ length: tensor.size }, (_, i) => number * 1000 + i),
              );
              tensor.copyFrom(numbers);
              tensor.dispose();
            }
          }
        };
        const touch = (first: number, rows: number): void => {
          for (const { key, value } of cache.layers(first, rows)) for (const tensor of [key, value]) tensor.dispose();
        };
        fill(0, 2, 1);
        fill(2, 1, 2);
        touch(0, 3);
        touch(1, 1);
        cache.copyRow(2, 0, 0, 4);
        touch(0, 2);
        cache.copyRow(1, 3, 0, 4);
        using copy = cache.read(2, 0, 2);
        cache.write(1, 1, 3, copy);
        cache.grow({ rows: 4, positions: 9 }, { rows: 4, positions: 20 }, { rows: 4, positions: 4 });
        touch(0, 4);
        return [0, 1, 2, 3].flatMap((row) => {
          using whole = cache.read(row, 0, 4);
          return [...(whole.data as Float32Array)];
        });
      };
      using host = new BufferPool();
      using wanted = host.cache(smallConfig, 4, 4);
      const found = pool.cache(smallConfig, 4, 4);
      expect(run(found)).toEqual(run(wanted));
      expect(pool.bytes).toBeGreaterThan(0);
      found[Symbol.dispose]();
      expect(pool.bytes).toBe(0);
    });
  });
});
