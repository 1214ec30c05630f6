/** @file IAPT's parameter count, the limits of its config, and that decoding has no trace of its generators. */
import { expect, test } from "vitest";
import { Graph } from "../../graph/index.ts";
import { Backbone } from "../../models/index.ts";
import { ADAPTER_INPUT, Adapter, buildMethod, iapt } from "../index.ts";
import type { Method } from "../method.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;

test("within 1 % of the paper's 83.9 M on LLaMA-2 7B, which are the generators alone", () => {
  const config = iapt.newConfig({}, llama7b);
  expect(config).toMatchObject({ num_virtual_tokens: 4, bottleneck: 320 });
  const { tunable, activated } = iapt.countParameters(config, llama7b);
  expect(tunable).toEqual({ generators: 83_886_080, poolers: 524_288, activations: 384 });
  expect(activated).toEqual(tunable);
  const total = Object.values(tunable).reduce((a, b) => a + b);
  expect(Math.abs(total / 83.9e6 - 1)).toBeLessThan(0.01);
  const listed = iapt.parameters(config, llama7b);
  expect(listed.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0)).toBe(total);
});

test.each([
  [{ num_virtual_tokens: 0 }, /num_virtual_tokens/],
  [{ bottleneck: 0.5 }, /bottleneck/],
])("refuses %j", (options, message) => {
  expect(() => iapt.newConfig(options, llama7b)).toThrow(message);
});

test("decoding reads no parameter: the KV cache holds the soft prompts", () => {
  const config = {
    ...Backbone.shapes["smollm2-135m"]!,
    numLayers: 2,
    vocabSize: 32,
    hiddenSize: 16,
    intermediateSize: 32,
  };
  using backbone = Backbone.random({ ...config, headDim: 4, numHeads: 4, numKvHeads: 2 });
  using adapter = Adapter.create(iapt as unknown as Method, { bottleneck: 3 }, backbone.config, 1);
  const inputsOf = (kind: "prefill" | "decode") => {
    const asked: string[] = [];
    class Listening extends Graph {
      override input(...[name, ...rest]: Parameters<Graph["input"]>) {
        asked.push(name);
        return super.input(name, ...rest);
      }
    }
    const graph = new Listening(kind);
    const tokens = graph.input("tokens", "int64", ["B", kind === "decode" ? 1 : "T"]);
    const promptMask = graph.input("promptMask", "float32", ["B", "T"]);
    const lastPositions = graph.input("lastPositions", "int32", ["B"]);
    const totalLength = graph.input("totalLength", "int32", []);
    const phase = kind === "decode" ? { kind, state: () => graph.scalar(0) } : { kind, promptMask };
    const { hooks } = buildMethod(graph, adapter, phase, { derived: "input" });
    const attention = { kind: "cached", lastPositions, totalLength } as const;
    backbone.forward(graph, { tokens, attention, hooks });
    return asked.filter((name) => name.startsWith(ADAPTER_INPUT)).length;
  };
  expect(inputsOf("prefill")).toBe(adapter.tensors.size);
  expect(inputsOf("decode")).toBe(0);
});
