/** @file Decoding speed of one sequence: milora bare, with LoRA, with MiLoRA, and llama.cpp on the same shape. */
import { fileURLToPath } from "node:url";
import type { DecodeRound, DecodeSettings } from "./lib/decode-settings.ts";
import { inspectMachine, versionOf } from "./lib/machine.ts";
import { integer, main, parseOptions, selected } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { quantile, ratios, type Summary, summarize } from "./lib/statistics.ts";
import { takeTurns, Worker } from "./lib/worker.ts";

const USAGE = `npm run decode -- [options]
  --shape NAME    smollm2-135m (default), tinyllama-1.1b, tiny, …
  --steps N       timed tokens a round (64)
  --past N        prompt tokens (128)
  --rank N        rank of the adapters (32)
  --block-size N  weights per scale in milora's int4 (32, as Q4_0)
  --no-spin       milora's idle threads sleep at once (then it is a trial)`;

interface Variant {
  readonly name: string;
  readonly engine: "milora" | "llama-cpp";
  readonly adapter?: DecodeSettings["adapter"];
}

interface Row {
  readonly stepMs: Summary;
  readonly tokensPerSecond: number;
  readonly prefillMs: Summary;
  /** Step time over that of another variant, paired by round. */
  readonly toBare?: Summary;
  readonly toLlama?: Summary;
  readonly toLlamaLora?: Summary;
  readonly peakRssBytes: number;
  readonly weightBytes: unknown;
  readonly roundStepMs: readonly number[];
}

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    steps: { type: "string", default: "64" },
    past: { type: "string", default: "128" },
    rank: { type: "string", default: "32" },
    "block-size": { type: "string", default: "32" },
    "no-spin": { type: "boolean", default: false },
  });
  const shape = String(options.shape);
  const rounds = integer(options.rounds ?? 15, "rounds");
  const steps = integer(options.steps, "steps");
  const past = integer(options.past, "past");
  const r = integer(options.rank, "rank");
  const settings = {
    shape,
    threads: integer(options.threads, "threads"),
    spin: options["no-spin"] !== true,
    past,
    steps,
    capacity: Math.ceil((past + steps + 1) / 256) * 256,
    blockSize: integer(options["block-size"], "block-size"),
  };
  const variants: readonly Variant[] = [
    { name: "milora bare", engine: "milora" },
    { name: `milora LoRA r${r}`, engine: "milora", adapter: { method: "lora", options: { r } } },
    { name: `milora MiLoRA k=3 r${r}`, engine: "milora", adapter: { method: "milora", options: { r, top_k: 3 } } },
    { name: `milora MiLoRA k=1 r${r}`, engine: "milora", adapter: { method: "milora", options: { r, top_k: 1 } } },
    { name: "llama.cpp base", engine: "llama-cpp" },
    { name: `llama.cpp LoRA r${r}`, engine: "llama-cpp", adapter: { method: "lora", options: { r } } },
  ];
  const chosen = variants.filter(({ name }) => selected(options.only, name));
  const machine = await inspectMachine({
    allowBusy: options["allow-busy"] === true,
    versions: { "node-llama-cpp": versionOf("node-llama-cpp") },
  });

  const workers = new Map<Variant, Worker<DecodeRound>>();
  try {
    for (const variant of chosen) {
      const script = fileURLToPath(new URL(`workers/decode-${variant.engine}.js`, import.meta.url));
      const sent: DecodeSettings = { ...settings, ...(variant.adapter && { adapter: variant.adapter }) };
      process.stderr.write(`starting ${variant.name}\n`);
      workers.set(variant, await Worker.start(variant.name, process.execPath, [script, JSON.stringify(sent)]));
    }
    await takeTurns([...workers.values()], rounds);
  } finally {
    for (const worker of workers.values()) worker.kill();
  }

  const medians = new Map(
    [...workers].map(([{ name }, worker]) => [name, worker.rounds.map(({ stepMs }) => quantile(stepMs, 0.5))]),
  );
  const against = (name: string, other: string) => {
    const a = medians.get(name);
    const b = medians.get(other);
    return a && b && name !== other ? ratios(a, b) : undefined;
  };
  const results = new Map<string, Row>();
  for (const [{ name }, worker] of workers) {
    const roundStepMs = medians.get(name) ?? [];
    const stepMs = summarize(roundStepMs);
    const toBare = against(name, "milora bare");
    const toLlama = against(name, "llama.cpp base");
    const toLlamaLora = against(name, `llama.cpp LoRA r${r}`);
    results.set(name, {
      stepMs,
      tokensPerSecond: 1000 / stepMs.median,
      prefillMs: summarize(worker.rounds.map(({ prefillMs }) => prefillMs)),
      ...(toBare && { toBare }),
      ...(toLlama && { toLlama }),
      ...(toLlamaLora && { toLlamaLora }),
      peakRssBytes: worker.peakRss,
      weightBytes: worker.info.weightBytes,
      roundStepMs,
    });
  }
  const cell = (summary: Summary | undefined) => (summary ? `×${spread(summary)}` : "");
  const text = table(
    ["", "ms/token", "tokens/s", "/ bare", "/ llama.cpp", "/ llama.cpp LoRA", `prefill ${past}, ms`, "peak RSS"],
    [...results].map(([name, row]) => [
      name,
      spread(row.stepMs),
      row.tokensPerSecond.toFixed(1),
      cell(row.toBare),
      cell(row.toLlama),
      cell(row.toLlamaLora),
      spread(row.prefillMs, 1),
      megabytes(row.peakRssBytes),
    ]),
  );
  const trial = chosen.length < variants.length || rounds < 5 || shape === "tiny" || !settings.spin;
  report(`decode-${shape}`, machine, trial, text, {
    settings: { ...settings, rank: r, rounds },
    results: Object.fromEntries(results),
  });
});
