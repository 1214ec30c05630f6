/** @file Adapters in the engine: greedy tokens as in PyTorch, many prompts at once as each alone, beams too. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "../../src/generation/index.ts";
import { Adapter } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { adapterCases, distance, FIXTURES, fixture } from "./support.ts";

interface Expected {
  readonly backbone: string;
  readonly sequences: {
    readonly tokens?: number[];
    readonly prompt?: number[];
    readonly greedy: number[] | null;
  }[];
}

const TOLERANCE = 1e-4;
// LoRA and MiLoRA, with their routes, are tested beside the engine.
const elsewhere = new Set(["lora", "milora"]);

describe.each(adapterCases().filter(({ method }) => !elsewhere.has(method)))("$method/$name", ({ method, name }) => {
  const expected = fixture<Expected>(method, name, "expected.json");
  let backbone: Backbone;
  let adapter: Adapter;
  let engine: Engine;
  beforeAll(async () => {
    backbone = await Backbone.load(join(FIXTURES, "backbones", expected.backbone));
    adapter = Adapter.load(join(FIXTURES, method, name), backbone.config);
    engine = Engine.create(backbone);
  });
  afterAll(() => {
    engine?.dispose();
    adapter?.dispose();
    backbone?.dispose();
  });

  test("greedy tokens and beams, alone and in one batch of unequal lengths", async () => {
    const known = expected.sequences.filter(({ greedy }) => greedy !== null);
    expect(known.length).toBeGreaterThan(1);
    for (const beams of [1, 3]) {
      const requests = known.map(({ tokens, prompt }) => ({
        prompt: (tokens ?? prompt)!,
        adapter,
        options: { maxNewTokens: 12, eosTokenIds: [], beams },
      }));
      const together = await engine.generate(requests);
      for (const [i, { greedy }] of known.entries()) {
        const [alone] = await engine.generate([requests[i]!]);
        expect(together[i]!.tokens).toEqual(alone!.tokens);
        expect(distance(together[i]!.logprobs, alone!.logprobs)).toBeLessThan(TOLERANCE);
        if (beams === 1) expect(alone!.tokens).toEqual(greedy);
        const [scored] = await engine.score([{ prompt: requests[i]!.prompt, continuation: alone!.tokens }], adapter);
        expect(distance(scored!.logprobs, alone!.logprobs)).toBeLessThan(TOLERANCE);
      }
    }
  });
});
