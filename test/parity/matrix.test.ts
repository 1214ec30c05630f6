/** @file What holds for every method on every backbone: its start, its gradients, its batches, its files, merging. */
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type InputError, Random, sum } from "../../src/base/index.ts";
import { Adapter, mergeAdapter, methods } from "../../src/methods/index.ts";
import { Backbone, readSafetensors, type StoredTensor, writeSafetensors } from "../../src/models/index.ts";
import { distance, FIXTURES, Passes, pass } from "./support.ts";

const TOLERANCE = 1e-4;
/** How far each number moves in a step against its gradient. */
const STEP = 1e-3;
const RUN = { totalSteps: 10 };
/** Prompts and what follows them; lengths differ, one prompt is a single token. */
const SEQUENCES = [
  { tokens: [1, 40, 7, 23, 88, 5, 61, 30, 12], prompt: 5 },
  { tokens: [1, 9, 77], prompt: 1 },
  { tokens: [1, 15, 15, 52, 3, 90], prompt: 4 },
  { tokens: [1, 64, 20, 33, 8, 71, 45, 19], prompt: 2 },
];
type Sequence = (typeof SEQUENCES)[number];

/** Right-padded, every token after the prompt a label. */
function batchOf(sequences: readonly Sequence[]) {
  const width = Math.max(...sequences.map(({ tokens }) => tokens.length));
  const filled = (values: readonly number[], padding: number) =>
    Array.from({ length: width }, (_, t) => values[t] ?? padding);
  return {
    tokens: sequences.map(({ tokens }) => filled(tokens, 0)),
    promptLengths: sequences.map(({ prompt }) => prompt),
    labels: sequences.map(({ tokens, prompt }) =>
      filled(
        tokens.map((_, t) => (t + 1 < prompt ? -100 : (tokens[t + 1] ?? -100))),
        -100,
      ),
    ),
  };
}

const directory = mkdtempSync(join(tmpdir(), "milora-matrix-"));
afterAll(() => rmSync(directory, { recursive: true }));

const digestOf = (backbone: Backbone): string => {
  const hash = createHash("sha256");
  for (const [name, { data }] of backbone.initializers()) {
    if (name.endsWith(".norms")) continue; // made when first asked for
    hash.update(name).update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return hash.digest("hex");
};

const filesOf = (path: string): Record<string, string> =>
  Object.fromEntries(readdirSync(path).map((name) => [name, readFileSync(join(path, name)).toString("base64")]));

describe.each(["llama-tied", "llama-gqa", "llama-headdim"])("%s", (name) => {
  const source = join(FIXTURES, "backbones", name);
  let backbone: Backbone;
  let bare: Float32Array;
  beforeAll(async () => {
    backbone = await Backbone.load(source);
    bare = pass(backbone, undefined, { ...batchOf(SEQUENCES) }).logits;
  });
  afterAll(() => backbone?.dispose());

  describe.each([...methods.values()].map((method) => ({ method, called: method.name })))("$called", ({ method }) => {
    const { startsAsIdentity, mergeable, routed } = method.properties;
    // Files depend on the backbone by shapes alone: one is enough.
    const once = name === "llama-gqa";
    const at = (what: string) => join(directory, `${name}-${method.name}-${what}`);
    /** As training begins; with `moved`, every number moved away from there. */
    const create = (moved: boolean, seed = 1): Adapter => {
      const adapter = Adapter.create(method, {}, backbone.config, seed, backbone, RUN);
      const random = new Random(99 + seed);
      for (const { key } of moved ? adapter.specs : []) {
        adapter.values(key).set(adapter.values(key).map((value) => value + 0.05 * random.normal()));
      }
      return adapter;
    };
    const logits = (adapter: Adapter | undefined, of = backbone) => pass(of, adapter, batchOf(SEQUENCES)).logits;

    test("starts as it says; its gradients are finite, and none is missing after one step", () => {
      const before = digestOf(backbone);
      using adapter = create(false);
      using passes = new Passes(backbone, adapter, true);
      const start = passes.run(batchOf(SEQUENCES));
      const moved = distance(start.logits, bare);
      if (startsAsIdentity) expect(moved).toBeLessThan(1e-5);
      else expect(moved).toBeGreaterThan(1e-3);
      expect(method.isIdentity(adapter.config, adapter.backbone, (key) => adapter.values(key))).toBe(startsAsIdentity);
      for (const [key, gradient] of start.gradients) {
        const values = adapter.values(key);
        for (let i = 0; i < values.length; i++) values[i]! -= (STEP * gradient[i]!) / (Math.abs(gradient[i]!) + 1e-8);
      }
      const next = passes.run(batchOf(SEQUENCES));
      expect(next.loss).toBeLessThan(start.loss!);
      expect([...next.gradients.keys()]).toEqual(adapter.specs.map(({ key }) => key));
      expect([...next.gradients].filter(([, values]) => !values.every(Number.isFinite)).map(([key]) => key)).toEqual(
        [],
      );
      // Which experts of a routed method are chosen is up to the prompts: there one of each kind must do.
      const kind = (key: string) => (routed ? key.replace(/^.*_(proj|router)\./, "") : key);
      const reached = new Set([...next.gradients].filter(([, g]) => g.some((v) => v !== 0)).map(([key]) => kind(key)));
      expect([...next.gradients.keys()].filter((key) => !reached.has(kind(key)))).toEqual([]);
      expect(digestOf(backbone)).toBe(before);
    });

    test("many at once are as each alone: padding and order do not matter", () => {
      using adapter = create(true);
      using passes = new Passes(backbone, adapter, false);
      const vocabulary = backbone.config.vocabSize;
      const rowsOf = (sequences: readonly Sequence[]) => {
        const { logits } = passes.run(batchOf(sequences));
        const width = logits.length / sequences.length;
        return sequences.map(({ tokens }, b) => logits.slice(b * width, b * width + tokens.length * vocabulary));
      };
      const together = rowsOf(SEQUENCES);
      const reversed = rowsOf(SEQUENCES.toReversed()).toReversed();
      for (const [i, sequence] of SEQUENCES.entries()) {
        expect(distance(together[i]!, rowsOf([sequence])[0]!)).toBeLessThan(TOLERANCE);
        expect(distance(together[i]!, reversed[i]!)).toBeLessThan(TOLERANCE);
      }
      expect(distance(logits(adapter), bare)).toBeGreaterThan(1e-3);
    });

    test.runIf(once)("files: bytes, digest and what is computed survive saving and loading", async () => {
      using adapter = create(true);
      const { digest } = adapter;
      await adapter.save(at("use"));
      using used = Adapter.load(at("use"), backbone.config);
      await used.save(at("again"));
      expect(filesOf(at("again"))).toEqual(filesOf(at("use")));
      expect(distance(logits(used), logits(adapter))).toBeLessThan(TOLERANCE);
      // The form for training, as checkpoints keep it.
      adapter.saveInto(at("use"));
      using kept = Adapter.load(at("use"), backbone.config);
      kept.saveInto(at("again"));
      expect(filesOf(at("again"))).toEqual(filesOf(at("use")));
      expect(kept.digest).toBe(digest);
      expect(kept.method.name).toBe(method.name);
      using other = create(true, 2);
      expect(other.digest).not.toBe(digest);
      adapter.values(adapter.specs.at(-1)!.key)[0]! += 1e-3;
      expect(adapter.digest).not.toBe(digest);
    });

    test.runIf(once)("loading lists every problem at once", async () => {
      using adapter = create(true);
      await adapter.save(at("broken"));
      adapter.saveInto(at("broken"));
      const path = join(at("broken"), "adapter_model.safetensors");
      const tensors = new Map<string, StoredTensor>(readSafetensors(path).tensors);
      const [missing, shaped, damaged] = [...tensors.keys()] as [string, string, string];
      tensors.delete(missing);
      tensors.set(shaped, { dtype: "float32", shape: [1, 1, 2], data: new Float32Array(2) });
      (tensors.get(damaged)!.data as Float32Array)[0] = Number.NaN;
      tensors.set("base_model.model.surplus", { dtype: "float32", shape: [1], data: new Float32Array(1) });
      writeSafetensors(path, tensors);
      let problems: readonly string[] = [];
      try {
        Adapter.load(at("broken"), backbone.config).dispose();
      } catch (error) {
        problems = (error as InputError).problems;
      }
      expect(problems.toSorted()).toEqual(
        [
          "base_model.model.surplus is not used by this adapter",
          problems.find((text) => text.startsWith(`${missing} [`) && text.endsWith("] is missing")),
          problems.find((text) => text.startsWith(`${shaped} is [1, 1, 2], expected [`)),
          `${damaged} has numbers that are not finite`,
        ].toSorted(),
      );
    });

    test.runIf(once && startsAsIdentity)("an adapter that would change nothing is refused", async () => {
      using adapter = create(false);
      await adapter.save(at("identity"));
      expect(() => Adapter.load(at("identity"), backbone.config)).toThrow(/would change nothing/);
      using allowed = Adapter.load(at("identity"), backbone.config, { allowIdentity: true });
      expect(distance(logits(allowed), bare)).toBeLessThan(1e-5);
    });

    test("merged is unmerged, where it can be merged", async () => {
      expect(mergeable).toBe(method.merge !== undefined);
      using adapter = create(true);
      const merging = mergeAdapter(adapter, source, at("merged"), { dtype: "float32" });
      if (!mergeable) return await expect(merging).rejects.toMatchObject({ code: "ADAPTER_NOT_MERGEABLE" });
      expect((await merging).length).toBeGreaterThan(0);
      using merged = await Backbone.load(at("merged"));
      expect(distance(logits(undefined, merged), logits(adapter))).toBeLessThan(TOLERANCE);
    });

    test.runIf(once)("parameters are counted as they are", () => {
      using adapter = create(false);
      const { tunable, activated } = method.countParameters(adapter.config, backbone.config);
      const listed = sum(adapter.specs.map(({ shape }) => shape.reduce((a, b) => a * b, 1)));
      const prunes = method.trainingState !== undefined || method.interim?.(adapter.config, 1);
      if (prunes) expect(sum(Object.values(tunable))).toBeLessThan(listed);
      else expect(sum(Object.values(tunable))).toBe(listed);
      expect(sum(Object.values(activated))).toBeLessThanOrEqual(sum(Object.values(tunable)));
    });
  });
});
