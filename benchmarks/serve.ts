/**
 * @file What serving many tenants costs: streams that share no adapter against streams that share one, or none, over HTTP; and
 * with `--adapters`, a thousand adapters against ten.
 */
import { Agent } from "node:http";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { send } from "./lib/http-client.ts";
import { LLAMA_CPP_ENVIRONMENT } from "./lib/llama-cpp.ts";
import { inspectMachine, type Machine, versionOf } from "./lib/machine.ts";
import { integer, main, parseOptions, selected } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { scratch } from "./lib/scratch.ts";
import { serveMany } from "./lib/serve-many.ts";
import { promptOf, type ServeRound, type ServeSettings } from "./lib/serve-settings.ts";
import { ServerProcess } from "./lib/server-process.ts";
import { installAdapters, preparedModel } from "./lib/serving-model.ts";
import { shapeOf } from "./lib/shapes.ts";
import { quantile, ratios, type Summary, summarize } from "./lib/statistics.ts";
import { Worker } from "./lib/worker.ts";

const USAGE = `npm run serve -- [options]
  --shape NAME     smollm2-135m (default), tiny, …; int4
  --rank N,N       ranks of the adapters, one measurement after the other (32; 8 with --adapters)
  --past N         prompt tokens of a request (64)
  --tokens N       tokens of an answer (128; 32 with --adapters)
  --streams N      requests at a time (16)
  --precision P    what decoding holds adapters as (int8; float32, float16)
  --directory DIR  where adapters are written, and deleted afterwards (the temporary one; 1.3 GB at rank 32)
  --adapters N     instead: N registered adapters against ten, requests arriving by chance
  --zipf S         exponent of their popularity (1.1)
  --share S        of what ten adapters can be served at most, how much arrives (0.5)
  --seconds N      of arrivals a round (60)`;

/** What is to be held, and how the report says so. */
const TARGETS: readonly (readonly [name: string, other: string, least: number])[] = [
  ["MiLoRA, each its own", "MiLoRA, one for all", 0.85],
  ["MiLoRA, each its own", "bare", 0.8],
  ["LoRA, each its own", "LoRA, one for all", 0.85],
  ["LoRA, each its own", "bare", 0.8],
  ["MiLoRA, each its own", "llama.cpp, LoRAs in turn", 4],
  ["LoRA, each its own", "llama.cpp, LoRAs in turn", 4],
];

interface Variant {
  readonly name: string;
  /** Which model the i-th stream asks for; none for the peer. */
  readonly model?: (stream: number) => string;
}

interface Contender {
  readonly name: string;
  readonly rounds: ServeRound[];
  readonly round: () => Promise<ServeRound>;
}

const VARIANTS: readonly Variant[] = [
  { name: "bare", model: () => BASE },
  { name: "MiLoRA, one for all", model: () => "milora-0" },
  { name: "MiLoRA, each its own", model: (stream) => `milora-${stream}` },
  { name: "LoRA, one for all", model: () => "lora-0" },
  { name: "LoRA, each its own", model: (stream) => `lora-${stream}` },
  { name: "llama.cpp, LoRAs in turn" },
];
const BASE = "backbone";

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    rank: { type: "string" },
    past: { type: "string", default: "64" },
    tokens: { type: "string" },
    streams: { type: "string", default: "16" },
    precision: { type: "string", default: "int8" },
    directory: { type: "string", default: tmpdir() },
    adapters: { type: "string" },
    zipf: { type: "string", default: "1.1" },
    share: { type: "string", default: "0.5" },
    seconds: { type: "string", default: "60" },
  });
  const many = options.adapters === undefined ? undefined : integer(options.adapters, "adapters");
  const shape = String(options.shape);
  const rounds = integer(options.rounds ?? 5, "rounds");
  const ranks = String(options.rank ?? (many ? 8 : 32)).split(",");
  const machine = await inspectMachine({
    allowBusy: options["allow-busy"] === true,
    versions: { "node-llama-cpp": versionOf("node-llama-cpp") },
  });
  const model = await preparedModel(shape);
  for (const rank of ranks) {
    const settings: ServeSettings = {
      shape,
      threads: integer(options.threads, "threads"),
      rank: integer(rank, "rank"),
      streams: integer(options.streams, "streams"),
      past: integer(options.past, "past"),
      tokens: integer(options.tokens ?? (many ? 32 : 128), "tokens"),
      precision: String(options.precision),
    };
    using place = scratch(String(options.directory), "milora-serve-");
    const run = { rounds, model, directory: place.path, machine };
    if (many === undefined) await serveStreams(settings, { ...run, only: options.only });
    else {
      const traffic = { zipf: Number(options.zipf), share: Number(options.share), seconds: Number(options.seconds) };
      await serveMany({ ...settings, ...traffic, adapters: many }, run);
    }
  }
});

interface Run {
  readonly rounds: number;
  readonly model: string;
  readonly directory: string;
  readonly machine: Machine;
  readonly only: unknown;
}

async function serveStreams(settings: ServeSettings, { rounds, model, directory, machine, only }: Run): Promise<void> {
  const { shape, threads, rank, streams } = settings;
  const chosen = VARIANTS.filter(({ name }) => selected(only, name));
  process.stderr.write(`installing ${2 * streams} adapters of rank ${rank}\n`);
  await installAdapters(
    directory,
    model,
    ["milora", "lora"].map((method) => {
      return { prefix: `${method}-`, method, options: { r: rank }, count: streams, distinct: streams };
    }),
  );
  const server = await ServerProcess.start({
    ...{ model, name: BASE, data: directory, threads },
    set: [
      `adapterPrecision=${settings.precision}`,
      `limits.maxBatch=${streams}`,
      `limits.maxAdaptersPerBatch=${streams}`,
      "residency.maxResidentBytes=8589934592",
    ],
  });
  const contenders: Contender[] = [];
  let peer: Worker<ServeRound> | undefined;
  try {
    for (const { name, model: modelOf } of chosen) {
      if (modelOf) contenders.push({ name, rounds: [], round: over(server.url, settings, modelOf) });
      else {
        process.stderr.write(`starting ${name}\n`);
        const script = fileURLToPath(new URL("workers/serve-llama-cpp.js", import.meta.url));
        peer = await Worker.start({
          name,
          command: process.execPath,
          args: [script, JSON.stringify(settings)],
          environment: LLAMA_CPP_ENVIRONMENT,
        });
        const { round } = peer;
        contenders.push({ name, rounds: [], round: () => round.call(peer) });
      }
    }
    for (let round = 0; round <= rounds; round++) {
      process.stderr.write(`\rround ${round}/${rounds}`);
      for (const contender of round % 2 === 0 ? contenders : contenders.toReversed()) {
        const result = await contender.round();
        if (round > 0) contender.rounds.push(result); // the one before makes sessions and loads adapters
      }
    }
    process.stderr.write("\r");
    await peer?.end();
    const { peakRss } = server.memory();
    const trial = chosen.length < VARIANTS.length || rounds < 5 || shape === "tiny";
    tell(settings, contenders, { machine, trial, rounds, serverPeakRss: peakRss, peerPeakRss: peer?.peakRss });
    if (server.failures.length > 0) throw new Error(`the server wrote of failures:\n${server.failures.join("\n")}`);
  } finally {
    peer?.kill();
    server.kill();
  }
}

/** All streams at once, each one request. */
function over(url: string, settings: ServeSettings, modelOf: (stream: number) => string): () => Promise<ServeRound> {
  const { shape, streams, past, tokens } = settings;
  const { vocabSize } = shapeOf(shape);
  const agent = new Agent({ keepAlive: true });
  let round = 0;
  return async () => {
    const bodies = Array.from({ length: streams }, (_, stream) => ({
      model: modelOf(stream),
      prompt: promptOf(past, vocabSize, stream, round),
      ...{ max_tokens: tokens, temperature: 0, ignore_eos: true },
      ...{ stream: true, stream_options: { include_usage: true } },
    }));
    round++;
    const began = performance.now();
    const answers = await Promise.all(bodies.map((body) => send({ agent, url: `${url}/v1/completions`, body })));
    const seconds = (performance.now() - began) / 1000;
    for (const { status, code, text, done, tokens: generated } of answers) {
      if (status === 200 && done && generated === tokens) continue;
      throw new Error(`an answer of ${generated} tokens, status ${status} ${code ?? ""} ${text}`);
    }
    const first = answers.map(({ eventMs }) => eventMs[0] ?? Number.NaN);
    const between = answers.flatMap(({ eventMs }) => eventMs.slice(1).map((at, i) => at - (eventMs[i] as number)));
    return {
      tokensPerSecond: (streams * tokens) / seconds,
      ...{ firstP50: quantile(first, 0.5), firstP95: quantile(first, 0.95) },
      ...{ betweenP50: quantile(between, 0.5), betweenP95: quantile(between, 0.95) },
    };
  };
}

interface Told {
  readonly machine: Machine;
  readonly trial: boolean;
  readonly rounds: number;
  readonly serverPeakRss: number;
  readonly peerPeakRss: number | undefined;
}

function tell(settings: ServeSettings, contenders: readonly Contender[], told: Told): void {
  const { machine, trial, rounds, serverPeakRss, peerPeakRss } = told;
  const speeds = new Map(contenders.map(({ name, rounds: all }) => [name, all.map((one) => one.tokensPerSecond)]));
  const against = (name: string, other: string): Summary | undefined => {
    const a = speeds.get(name);
    const b = speeds.get(other);
    return a && b && name !== other ? ratios(a, b) : undefined;
  };
  const cell = (summary: Summary | undefined) => (summary ? `×${spread(summary)}` : "");
  const text = table(
    ["", "tokens/s", "/ bare", "first token p50, ms", "p95", "next token p50, ms", "p95"],
    contenders.map(({ name, rounds: all }) => {
      const of = (key: keyof ServeRound, digits: number) => spread(summarize(all.map((one) => one[key])), digits);
      return [
        name,
        of("tokensPerSecond", 1),
        cell(against(name, "bare")),
        ...[of("firstP50", 0), of("firstP95", 0), of("betweenP50", 1), of("betweenP95", 1)],
      ];
    }),
  );
  const targets = TARGETS.flatMap(([name, other, least]) => {
    const ratio = against(name, other);
    return ratio ? [{ name, other, least, ratio }] : [];
  });
  const lines = targets.map(
    ({ name, other, least, ratio }) => `${name} / ${other}: ×${spread(ratio)}, to be at least ${least}`,
  );
  const memory = [
    `peak RSS of the server ${megabytes(serverPeakRss)}`,
    ...(peerPeakRss === undefined ? [] : [`of llama.cpp ${megabytes(peerPeakRss)}`]),
  ];
  report(
    `serve-${settings.shape}-r${settings.rank}${settings.precision === "int8" ? "" : `-${settings.precision}`}`,
    machine,
    trial,
    [text, "", ...lines, memory.join(", ")].join("\n"),
    {
      settings: { ...settings, rounds },
      ...{ targets, serverPeakRss, peerPeakRss },
      results: Object.fromEntries(contenders.map(({ name, rounds: all }) => [name, all])),
    },
  );
}
