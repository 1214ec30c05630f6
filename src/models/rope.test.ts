/** @file Frequencies of every kind of scaling, at the sizes of published models, against transformers. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { FAMILIES } from "./families.ts";
import { ropeFrequencies, ropeOfLayer, ropeTables } from "./rope.ts";

interface Case {
  readonly name: string;
  readonly headDim: number;
  readonly maxPositions: number;
  readonly parameters: Readonly<Record<string, unknown>>;
  /** LongRoPE: for short sequences and for long ones. */
  readonly frequencies: number[][];
  readonly attention: number;
}

const { cases } = JSON.parse(readFileSync("test/fixtures/rope.json", "utf8")) as { cases: Case[] };

describe.each(cases)("$name", ({ headDim, maxPositions, parameters, frequencies, attention }) => {
  const config = FAMILIES.llama!.config(
    {
      hidden_size: 4 * headDim,
      intermediate_size: 8,
      num_hidden_layers: 1,
      num_attention_heads: 4,
      vocab_size: 8,
      max_position_embeddings: maxPositions,
      rope_parameters: parameters,
    },
    "config.json",
  );
  const { rope } = ropeOfLayer(config, 0);

  test("frequencies to the last bit or next to it", () => {
    const found = ropeFrequencies(rope, headDim);
    expect(found.length).toBe(frequencies.length);
    for (const [variant, list] of frequencies.entries()) {
      expect(found[variant]!.length).toBe(list.length);
      const errors = list.map(Math.fround).map((value, i) => Math.abs(found[variant]![i]! - value) / value);
      expect(Math.max(...errors)).toBeLessThan(2.5e-7); // two units in the last place
      expect(errors.filter((error) => error > 1e-12).length).toBeLessThan(list.length / 4);
    }
    expect(rope.scaling && "attention" in rope.scaling ? rope.scaling.attention : 1).toBeCloseTo(attention, 8);
  });

  test("a table's last row is that of the last position", () => {
    const small = { ...config, maxPositions: 300 };
    const { shape, values } = ropeTables(small).get("rope.cos")!;
    expect(shape).toEqual([300 * frequencies.length, headDim / 2]);
    const row = values.subarray(values.length - headDim / 2);
    frequencies.at(-1)!.forEach((frequency, i) => {
      expect(row[i]).toBeCloseTo(Math.cos(299 * frequency) * attention, 4);
    });
  });
});

test("positions that a scaled model can read", () => {
  const positions = Object.fromEntries(
    cases.map(({ name, headDim, maxPositions, parameters }) => {
      const raw = {
        hidden_size: 4 * headDim,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        vocab_size: 8,
      };
      const config = FAMILIES.llama!.config(
        { ...raw, max_position_embeddings: maxPositions, rope_parameters: parameters },
        "config.json",
      );
      return [name, config.maxPositions];
    }),
  );
  expect(positions).toEqual({
    default: 131072,
    linear: 4 * 16384,
    llama3: 131072,
    "llama3-8b": 131072,
    yarn: 131072,
    "yarn-options": 65536,
    longrope: 131072,
  });
});
