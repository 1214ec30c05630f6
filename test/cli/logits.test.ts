/** @file Tests of `milora logits --json` against the stored numbers of PyTorch, transformers and PEFT. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { fixture, milora } from "./milora.ts";

interface Output {
  readonly logits: number[];
  readonly logprobs: number[];
  readonly greedy: number[];
  readonly routes?: Record<string, string[]>;
  readonly probabilities?: Record<string, number[]>;
}

/** Fixtures are float32; the two programs add in different orders. */
const TOLERANCE = 2e-4;

function close(got: readonly number[], expected: readonly number[]): void {
  expect(got.length).toBe(expected.length);
  const worst = Math.max(0, ...got.map((value, i) => Math.abs(value - expected[i]!)));
  expect(worst).toBeLessThan(TOLERANCE);
}

async function logits(model: string, adapter: string | undefined, tokens: readonly number[]): Promise<Output> {
  const flags = ["--model", fixture("backbones", model), ...(adapter ? ["--adapter", fixture(adapter)] : [])];
  const { code, stdout, stderr } = await milora([
    "logits",
    ...flags,
    "--tokens",
    tokens.join(","),
    "--greedy",
    "12",
    "--json",
  ]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout.trimEnd()).not.toContain("\n");
  return JSON.parse(stdout) as Output;
}

function expected(...parts: string[]): { backbone: string; sequences: Record<string, never>[] } {
  return JSON.parse(readFileSync(fixture(...parts, "expected.json"), "utf8"));
}

interface PlainSequence {
  tokens: number[];
  logits: number[][];
  logProbs: number[];
  greedy: number[];
}

test.each(["llama-tied", "llama-untied", "llama-headdim"])("bare backbone %s", async (model) => {
  const sequence = expected("backbones", model).sequences[1] as unknown as PlainSequence;
  const output = await logits(model, undefined, sequence.tokens);
  close(output.logits, sequence.logits.at(-1)!);
  close(output.logprobs, sequence.logProbs);
  expect(output.greedy).toEqual(sequence.greedy);
  expect(Object.keys(output)).toEqual(["logits", "logprobs", "greedy"]);
});

test.each(["all-modules", "rslora"])("LoRA %s", async (name) => {
  const { backbone, sequences } = expected("lora", name);
  const sequence = sequences[1] as unknown as PlainSequence;
  const output = await logits(backbone, join("lora", name), sequence.tokens);
  close(output.logits, sequence.logits.at(-1)!);
  close(output.logprobs, sequence.logProbs);
  expect(output.greedy).toEqual(sequence.greedy);
});

interface RoutedSequence {
  prompt: number[];
  response: number[];
  routes: number[][];
  probabilities: number[][];
  logits: number[][];
  logProbs: number[];
  greedy: number[];
}

describe.each(["default", "k1", "subset", "gate-probability"])("MiLoRA %s", (name) => {
  const { backbone, sequences } = expected("milora", name);
  const config = JSON.parse(readFileSync(fixture("milora", name, "adapter_config.json"), "utf8")) as {
    target_modules: string[];
  };

  test.each([0, 2])("sequence %i", async (index) => {
    const {
      prompt,
      routes,
      probabilities,
      logits: rows,
      logProbs,
      greedy,
    } = sequences[index] as unknown as RoutedSequence;
    const output = await logits(backbone, join("milora", name), prompt);
    close(output.logits, rows[prompt.length - 1]!);
    close(output.logprobs, logProbs.slice(0, prompt.length - 1));
    expect(output.greedy).toEqual(greedy);
    const named = Object.fromEntries(
      routes.map((chosen, layer) => [layer, chosen.map((i) => config.target_modules[i])]),
    );
    expect(output.routes).toEqual(named);
    probabilities.forEach((row, layer) => {
      close(output.probabilities![layer]!, row);
    });
  });
});
