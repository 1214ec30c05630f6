/** @file Reading prompts: milora bare and under LoRA and MiLoRA, llama.cpp, the machine's ceiling, and what routing costs. */
import { describe, share } from "./lib/ceilings.ts";
import type { DecodeInfo, Load } from "./lib/decode-settings.ts";
import { type DecodeVariant, measureVariants, NAMES, promptOperations, variantsOf } from "./lib/decode-variants.ts";
import { inspectMachine, versionOf } from "./lib/machine.ts";
import { choose, integer, integers, main, parseOptions } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { shapeOf } from "./lib/shapes.ts";
import { ratios, summarize } from "./lib/statistics.ts";

const USAGE = `npm run prefill -- [options]
  --shape NAME    smollm2-135m (default), tinyllama-1.1b, llama-2-7b, tiny, …
  --tokens A,B    tokens of a prompt (128,512)
  --repeats N     prompts of each length a round, of which the median counts (7)
  --rank N        rank of the adapters (32)
  --block-size N  weights per scale in milora's int4 (32, as Q4_0)`;

const PEERS: Readonly<Record<string, string>> = {
  [NAMES.bare]: NAMES.llama,
  [NAMES.lora]: NAMES.llamaLora,
  [NAMES.milora]: NAMES.llamaLora,
};

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    tokens: { type: "string", default: "128,512" },
    repeats: { type: "string", default: "7" },
    rank: { type: "string", default: "32" },
    "block-size": { type: "string", default: "32" },
  });
  const { shape } = options;
  const config = shapeOf(shape);
  const rounds = integer(options.rounds ?? 7, "rounds");
  const r = integer(options.rank, "rank");
  const threads = integer(options.threads, "threads");
  const loads = integers(options.tokens, "tokens").map((past): Load => ({ past, batch: 1, beams: 1, steps: 0 }));
  const repeats = integer(options.repeats, "repeats");
  const blockSize = integer(options["block-size"], "block-size");
  const common = { shape, threads, spin: true, loads, repeats, blockSize };
  const compared: readonly string[] = [NAMES.bare, NAMES.lora, NAMES.milora, NAMES.llama, NAMES.llamaLora];
  const variants = variantsOf(common, r)
    .filter(({ name }) => compared.includes(name))
    .map((variant): DecodeVariant => {
      if (variant.name !== NAMES.milora) return variant;
      // In the same process and in turns, since the difference is small.
      const both = loads.flatMap((load) => [load, { ...load, unrouted: true }]);
      return { ...variant, settings: { ...variant.settings, loads: both } };
    });
  const chosen = choose(variants, options.only);
  const machine = await inspectMachine({
    allowBusy: options["allow-busy"],
    versions: { "node-llama-cpp": versionOf("node-llama-cpp") },
  });
  const { variants: measured, ceilings, notes } = await measureVariants(chosen, { rounds, threads, python: {} });

  /** Milliseconds of a variant's load, round by round. */
  const timesOf = (name: string, past: number, kind: "prefillMs" | "cpuMs" = "prefillMs", unrouted = false) => {
    const own = chosen.find((variant) => variant.name === name)?.settings.loads ?? [];
    const at = own.findIndex((load) => load.past === past && (load.unrouted ?? false) === unrouted);
    return at < 0 ? undefined : measured.get(name)?.rounds.map((round) => round[at]![kind]!);
  };
  const rows: string[][] = [];
  const results: object[] = [];
  for (const { past } of loads) {
    for (const [name, { info }] of measured) {
      const times = timesOf(name, past)!;
      const prefillMs = summarize(times);
      const peer = timesOf(PEERS[name] ?? "", past);
      const overPeer = peer && ratios(peer, times);
      const unrouted = timesOf(name, past, "cpuMs", true);
      const routing = unrouted && ratios(timesOf(name, past, "cpuMs")!, unrouted);
      const tokensPerSecond = (1000 * past) / prefillMs.median;
      const peakRssBytes = Math.max(...(info as unknown as DecodeInfo).peakRss);
      results.push({ name, past, prefillMs, tokensPerSecond, overPeer, routing, peakRssBytes, roundMs: times });
      rows.push([
        `${past} tokens, ${name}`,
        spread(prefillMs, 1),
        tokensPerSecond.toFixed(0),
        overPeer ? spread(overPeer) : "",
        share(promptOperations(config, past), prefillMs.median, ceilings.int8),
        routing ? spread(routing, 3) : "",
        megabytes(peakRssBytes),
      ]);
    }
  }
  const head = ["", "ms", "tokens/s", "× llama.cpp", "of int8's ceiling", "processor time / unrouted", "peak RSS"];
  const said = [
    "Goals: bare at 512 tokens at least 1.2 × llama.cpp; routing at 128 tokens at most 1.02.",
    describe(ceilings),
    ...notes,
  ];
  const trial = chosen.length < variants.length || rounds < 5 || shape === "tiny";
  report(`prefill-${shape}`, machine, trial, `${table(head, rows)}\n\n${said.join("\n")}`, {
    settings: { ...common, rank: r, rounds },
    ...{ ceilings, notes, results },
  });
});
