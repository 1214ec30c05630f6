/**
 * @file Runs llama.cpp on our GGUF fixtures, with LoRA adapters as `milora adapters export` writes them, and compares
 * its tokens, logits and greedy continuations with ours. `--write` keeps its numbers for test/parity/llama-cpp.test.ts.
 */
import { createHash } from "node:crypto";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { Engine } from "../src/generation/index.ts";
import { Adapter, exportGguf } from "../src/methods/index.ts";
// Copies of the fixtures are made of their very blocks, which the room's door does not show.
import { DEQUANTIZERS } from "../src/models/gguf/dequantize.ts";
import { readGgufHeader } from "../src/models/gguf/header.ts";
import { Backbone, ggufModule, parametersOf, sitesOf, writeGguf } from "../src/models/index.ts";
import { randomAdapter } from "./lib/adapters.ts";
import { benchmarksDirectory } from "./lib/cache.ts";
import { loadLlamaCpp, type Model } from "./lib/llama-cpp.ts";

const USAGE = `npm run gguf-check --prefix benchmarks -- [options]
  --write    store llama.cpp's numbers in test/fixtures/gguf/llama-cpp.json`;

const ROOT = dirname(benchmarksDirectory);
const FIXTURES = join(ROOT, "test", "fixtures");
const EXPECTED = join(FIXTURES, "gguf", "llama-cpp.json");
const TINY = join(ROOT, "assets", "tiny-llama");
const GREEDY = 12;
/**
 * Both compute in float32, with sums in another order. llama.cpp rounds what it multiplies by half
 * precision, too, and takes the GELU of Gemma from a table of half precision.
 */
const TOLERANCE = { float32: 1e-4, half: 0.05, gelu: 5e-3 };

/** Random tokens, begun as the fixtures' sequences are. */
const TOKENS = [
  [1, 17],
  [1, 50, 77, 12, 5, 5, 90, 31],
  [1, 3, 94, 60, 61, 62, 7, 8, 9, 33, 21, 45, 88, 14, 70, 71, 72, 73, 4, 66],
];
const TEXTS = [
  "The cell membrane",
  "Once upon a time, there was a 12 year old",
  "x = 3.14;\n\n  It's DON'T été 日本 😀",
];

export interface LlamaCppCase {
  readonly model: string;
  readonly adapter: string | null;
  readonly dtype: "f32" | "f16";
  /** SHA-256 of the adapter's GGUF file that llama.cpp read. */
  readonly sha256: string | null;
  readonly sequences: readonly { tokens: readonly number[]; logits: readonly number[]; greedy: readonly number[] }[];
}

/** Of GGUF fixtures; llama.cpp has no window for Phi-3, and takes LongRoPE's factors by the context's size. */
const FAMILIES = [
  "llama3",
  "llama-linear",
  "mistral",
  "gemma",
  "gemma2",
  "gemma3",
  "qwen2",
  "qwen2-yarn",
  "qwen3",
  "phi3-global",
];

/** Tokenizers that put a token before a text. */
const BEGUN = ["spm", "llama-bpe"];

const round = (value: number): number => Number(value.toPrecision(9));

async function logitsOf(model: Model, lora: string | undefined, sequences: readonly (readonly number[])[]) {
  const context = await model.createContext({
    ...{ sequences: 1, contextSize: 256, batchSize: 256, threads: 1 },
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
    ...(lora && { lora }),
  });
  const sequence = context.getSequence();
  const last = async (tokens: readonly number[]): Promise<number[]> => {
    await sequence.clearHistory();
    const asked = tokens.map((token, i) =>
      i === tokens.length - 1 ? ([token, { generateNext: { logits: true } }] as const) : token,
    );
    const results = await sequence.controlledEvaluate(asked);
    const logits = results.at(-1)?.next.logits;
    if (!logits) throw new Error("llama.cpp gave no logits");
    return Array.from({ length: logits.size }, (_, token) => logits.get(token)!);
  };
  const results = [];
  for (const tokens of sequences) {
    const logits = await last(tokens);
    const greedy: number[] = [];
    for (let best = argmax(logits); greedy.length < GREEDY; ) {
      greedy.push(best);
      best = argmax(await last([...tokens, ...greedy]));
    }
    results.push({ tokens, logits: logits.map(round), greedy });
  }
  await context.dispose();
  return results;
}

const argmax = (values: readonly number[]): number => values.indexOf(Math.max(...values));

/** Our numbers for the same, and the largest distance of a logit. */
async function compare(
  backbone: Backbone,
  adapter: Adapter | undefined,
  found: Awaited<ReturnType<typeof logitsOf>>,
): Promise<{ distance: number; greedy: number }> {
  using engine = Engine.create(backbone);
  let distance = 0;
  let greedy = 0;
  for (const one of found) {
    const { logits } = await engine.inspectTokens(one.tokens, adapter);
    distance = Math.max(distance, ...one.logits.map((value, token) => Math.abs(value - logits[token]!)));
    const options = { maxNewTokens: GREEDY };
    const [result] = await engine.generate([{ prompt: one.tokens, ...(adapter && { adapter }), options }]);
    // The end of a text ends ours, and is one of llama.cpp's tokens.
    const ours = result!.tokens;
    if (ours.length > 0 && ours.every((token, i) => token === one.greedy[i])) greedy++;
  }
  return { distance, greedy };
}

/** The bundled model as a float32 GGUF file. */
async function tinyModel(path: string): Promise<void> {
  using backbone = await Backbone.load(TINY);
  const { config } = backbone;
  const json = JSON.parse(readFileSync(join(TINY, "tokenizer.json"), "utf8")) as {
    model: { vocab: Record<string, number>; merges: (string | [string, string])[] };
    added_tokens: { id: number }[];
  };
  const tokens = Object.entries(json.model.vocab).sort(([, a], [, b]) => a - b);
  const special = new Set(json.added_tokens.map(({ id }) => id));
  const sites = new Map(sitesOf(config).map((site) => [`${site.path}.weight`, ggufModule(site, config)!]));
  const plain = (name: string) =>
    name
      .replace("model.embed_tokens", "token_embd")
      .replace("model.norm", "output_norm")
      .replace(/model\.layers\.(\d+)\.input_layernorm/, "blk.$1.attn_norm")
      .replace(/model\.layers\.(\d+)\.post_attention_layernorm/, "blk.$1.ffn_norm");
  const uint32 = (value: number) => ({ uint32: value });
  writeGguf(
    path,
    new Map<string, Parameters<typeof writeGguf>[1] extends ReadonlyMap<string, infer V> ? V : never>([
      ["general.architecture", "llama"],
      ["general.name", "tiny-llama"],
      ["llama.context_length", uint32(config.maxPositions)],
      ["llama.embedding_length", uint32(config.hiddenSize)],
      ["llama.block_count", uint32(config.numLayers)],
      ["llama.feed_forward_length", uint32(config.intermediateSize)],
      ["llama.attention.head_count", uint32(config.numHeads)],
      ["llama.attention.head_count_kv", uint32(config.numKvHeads)],
      ["llama.attention.key_length", uint32(config.headDim)],
      ["llama.attention.value_length", uint32(config.headDim)],
      ["llama.attention.layer_norm_rms_epsilon", { float32: config.rmsNormEps }],
      ["llama.rope.dimension_count", uint32(config.headDim)],
      ["llama.rope.freq_base", { float32: 10000 }],
      ["llama.vocab_size", uint32(config.vocabSize)],
      ["tokenizer.ggml.model", "gpt2"],
      ["tokenizer.ggml.pre", "smollm"],
      ["tokenizer.ggml.tokens", tokens.map(([token]) => token)],
      ["tokenizer.ggml.token_type", Int32Array.from(tokens, ([, id]) => (special.has(id) ? 3 : 1))],
      [
        "tokenizer.ggml.merges",
        json.model.merges.map((merge) => (typeof merge === "string" ? merge : merge.join(" "))),
      ],
      ["tokenizer.ggml.bos_token_id", uint32(0)],
      ["tokenizer.ggml.eos_token_id", uint32(0)],
      ["tokenizer.ggml.padding_token_id", uint32(3)],
      ["tokenizer.ggml.add_bos_token", false],
    ]),
    parametersOf(config).map(({ name, shape }) => {
      const module = sites.get(name);
      const data = backbone.initializers().get(name)!.data as Float32Array;
      const columns = shape.at(-1)!;
      const values = () => {
        if (!module?.storedRow) return data;
        const moved = new Float32Array(data.length);
        for (let row = 0; row < shape[0]!; row++) {
          moved.set(data.subarray(row * columns, (row + 1) * columns), module.storedRow(row) * columns);
        }
        return moved;
      };
      return { name: module ? `${module.name}.weight` : plain(name), shape, type: "F32" as const, values };
    }),
  );
}

/**
 * A copy of a GGUF file with all weights in float32: llama.cpp then rounds nothing that it multiplies by them. The
 * header is that of the file up to its first tensor.
 */
function inFloat32(path: string, copy: string): string {
  const bytes = readFileSync(path);
  const handle = openSync(path, "r");
  const { tensors } = readGgufHeader(handle, bytes.length, path);
  closeSync(handle);
  const named = (name: string) => {
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(name.length));
    return Buffer.concat([length, Buffer.from(name)]);
  };
  const first = [...tensors.keys()][0]!;
  const head = [bytes.subarray(0, bytes.indexOf(named(first)))];
  const data: Buffer[] = [];
  let offset = 0;
  for (const { name, shape, begin, bytes: size, type } of tensors.values()) {
    const rest = Buffer.alloc(4 + 8 * shape.length + 12);
    rest.writeUInt32LE(shape.length, 0);
    for (const [i, dimension] of shape.toReversed().entries()) rest.writeBigUInt64LE(BigInt(dimension), 4 + 8 * i);
    rest.writeUInt32LE(0, 4 + 8 * shape.length);
    rest.writeBigUInt64LE(BigInt(offset), 8 + 8 * shape.length);
    head.push(named(name), rest);
    const values = new Float32Array(shape.reduce((product, dimension) => product * dimension, 1));
    DEQUANTIZERS[type.name]!(bytes.subarray(begin, begin + size), values);
    const padded = Buffer.alloc(Math.ceil(values.byteLength / 32) * 32);
    padded.set(new Uint8Array(values.buffer));
    data.push(padded);
    offset += padded.length;
  }
  const header = Buffer.concat(head);
  writeFileSync(copy, Buffer.concat([header, Buffer.alloc((32 - (header.length % 32)) % 32), ...data]));
  return copy;
}

const { values: flags } = parseArgs({ options: { write: { type: "boolean" }, help: { type: "boolean" } } });
if (flags.help) process.stdout.write(`${USAGE}\n`);
else await main();

async function main(): Promise<void> {
  const scratch = mkdtempSync(join(tmpdir(), "gguf-check-"));
  let failed = 0;
  const say = (name: string, ok: boolean, text: string) => {
    if (!ok) failed++;
    process.stdout.write(`${ok ? "ok  " : "FAIL"} ${name.padEnd(44)} ${text}\n`);
  };
  try {
    const llama = await loadLlamaCpp(1);
    const cases: LlamaCppCase[] = [];
    const check = async (
      model: string,
      path: string,
      adapter: [name: string, loaded: Adapter] | undefined,
      dtype: "f32" | "f16",
      sequences: readonly (readonly number[])[],
    ) => {
      const modelPath =
        /-(bf16|f16|f32)$/.test(model) || model === "tiny-llama" ? path : inFloat32(path, join(scratch, "f32.gguf"));
      const loaded = await llama.loadModel({ modelPath, gpuLayers: 0 });
      using backbone = await Backbone.load(path);
      const file = adapter && join(scratch, `${cases.length}.gguf`);
      if (adapter && file) exportGguf(adapter[1], file, { dtype });
      const found = await logitsOf(loaded, file, sequences);
      await loaded.dispose();
      const { distance, greedy } = await compare(backbone, adapter?.[1], found);
      const name = [model, adapter?.[0], adapter && dtype].filter(Boolean).join(" + ");
      const gelu = model.startsWith("gemma");
      const half = dtype === "f16" || /-b?f16$/.test(model);
      const ok =
        distance < (half ? TOLERANCE.half : gelu ? TOLERANCE.gelu : TOLERANCE.float32) && greedy === found.length;
      say(name, ok, `largest distance of a logit ${distance.toExponential(1)}, greedy ${greedy} of ${found.length}`);
      const sha256 = file ? createHash("sha256").update(readFileSync(file)).digest("hex") : null;
      return { model, adapter: adapter?.[0] ?? null, dtype, sha256, sequences: found };
    };

    for (const model of ["llama-gqa-f32", "llama-headdim-bf16", "llama-tied-f16"]) {
      cases.push(await check(model, join(FIXTURES, "gguf", `${model}.gguf`), undefined, "f32", TOKENS));
    }
    const base = join(FIXTURES, "gguf", "llama-gqa-f32.gguf");
    for (const [name, dtype] of [
      ["all-modules", "f32"],
      ["all-modules", "f16"],
      ["patterns", "f32"],
      ["rslora", "f32"],
      ["qv-suffixes", "f32"],
    ] as const) {
      using backbone = await Backbone.load(base);
      using adapter = Adapter.load(join(FIXTURES, "lora", name), backbone.config);
      cases.push(await check("llama-gqa-f32", base, [`lora/${name}`, adapter], dtype, TOKENS));
    }

    // bfloat16 models of the other families, bare and with the LoRA that PEFT has trained on each.
    for (const model of FAMILIES) {
      const path = join(FIXTURES, "gguf", `${model}.gguf`);
      cases.push(await check(model, path, undefined, "f32", TOKENS));
      const source = model.replace("-global", "");
      const directory = join(FIXTURES, "families", source, "lora");
      if (!existsSync(directory)) continue;
      using backbone = await Backbone.load(path);
      using adapter = Adapter.load(directory, backbone.config);
      cases.push(await check(model, path, [`families/${source}/lora`, adapter], "f32", TOKENS));
    }

    const tiny = join(scratch, "tiny.gguf");
    await tinyModel(tiny);
    using backbone = await Backbone.load(tiny);
    const prompts = TEXTS.map((text) => backbone.tokenizer.encode(text));
    await check("tiny-llama", tiny, undefined, "f32", prompts);
    using adapter = randomAdapter("lora", { r: 8 }, backbone.config);
    await check("tiny-llama", tiny, ["a random LoRA", adapter], "f32", prompts);

    for (const [name, path] of [
      ["tiny-llama", tiny],
      ...["spm", "gpt-2", "smollm", "llama-bpe", "qwen2"].map((kind) => [
        kind,
        join(FIXTURES, "gguf", `tokenizer-${kind}.gguf`),
      ]),
    ] as [string, string][]) {
      const vocabulary = await llama.loadModel({ modelPath: path, gpuLayers: 0, vocabOnly: true });
      const { tokenizers } = JSON.parse(readFileSync(join(FIXTURES, "gguf", "tokenizers.json"), "utf8")) as {
        tokenizers: { file: string; cases: { text: string; ids: number[] }[] }[];
      };
      const known = tokenizers.find(({ file }) => file === `tokenizer-${name}.gguf`)?.cases;
      const texts = known ?? TEXTS.map((text) => ({ text, ids: backbone.tokenizer.encode(text) }));
      const different = texts.filter(({ text, ids }) => {
        // llama.cpp does not normalise, as Qwen's own tokenizer does, and is not asked for the token before a text here.
        const theirs = vocabulary.tokenize(name === "qwen2" ? text.normalize("NFC") : text, true);
        return JSON.stringify(theirs) !== JSON.stringify(BEGUN.includes(name) ? ids.slice(1) : ids);
      });
      const list = different.map(({ text }) => text);
      say(`tokens of ${name}`, list.length === 0, `${texts.length} texts; different: ${JSON.stringify(list)}`);
      await vocabulary.dispose();
    }
    if (flags.write) {
      const body = cases.map((one) => `  ${JSON.stringify(one)}`).join(",\n");
      writeFileSync(EXPECTED, `{ "release": ${JSON.stringify(llama.llamaCppRelease)}, "cases": [\n${body}\n]}\n`);
    }
  } finally {
    rmSync(scratch, { recursive: true });
  }
  if (failed > 0) process.exitCode = 1;
}
