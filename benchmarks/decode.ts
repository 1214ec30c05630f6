/** @file Decoding speed: milora bare and under adapters of several methods, llama.cpp and PEFT, alone, in batches, with beams. */
import { parametersOf } from "../src/models/index.ts";
import { describe, share } from "./lib/ceilings.ts";
import type { DecodeInfo, Load } from "./lib/decode-settings.ts";
import { measureVariants, NAMES, promptOperations, variantsOf } from "./lib/decode-variants.ts";
import { inspectMachine, versionOf } from "./lib/machine.ts";
import { choose, integer, integers, main, parseOptions } from "./lib/options.ts";
import { findPython, PYTHON_HELP } from "./lib/peft.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { shapeOf } from "./lib/shapes.ts";
import { ratios, type Summary, summarize } from "./lib/statistics.ts";

const USAGE = `npm run decode -- [options]
  --shape NAME    smollm2-135m (default), tinyllama-1.1b, llama-2-7b, tiny, …
  --batch A,B     sequences that decode together, greedy (1,4,16; above 3 billion weights 1,4)
  --beams A,B     1: greedy, in these batches; more: beam search for one sequence (1,3)
  --steps N       timed tokens a round (64; above 3 billion weights 16)
  --past N        prompt tokens (128)
  --rank N        rank of the adapters (32)
  --block-size N  weights per scale in milora's int4 (32, as Q4_0)
  --no-spin       milora's idle threads sleep at once (then it is a trial)
  ${PYTHON_HELP}`;

/** Tokens a second of one over those of another, and what the paper has for that, or the goal. */
const RATIOS: readonly (readonly [one: string, other: string, known?: Readonly<Record<number, string>>])[] = [
  [NAMES.milora, NAMES.moelora, { 1: "paper 1.217", 3: "paper 1.179" }],
  [NAMES.milora, NAMES.dora, { 1: "paper 1.197", 3: "paper 1.132" }],
  [NAMES.bare, NAMES.llama],
  [NAMES.lora, NAMES.llamaLora],
  [NAMES.milora, NAMES.llamaLora],
  [NAMES.bare, `${NAMES.torch} float32`],
  [NAMES.bare, `${NAMES.torch} bfloat16`],
  [NAMES.lora, `${NAMES.peft} float32`],
  [NAMES.lora, `${NAMES.peft} bfloat16`],
];

const LARGE = 3e9;

function nameOf({ batch, beams }: Load): string {
  return beams > 1 ? `${beams} beams` : batch === 1 ? "one sequence" : `${batch} sequences`;
}

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    batch: { type: "string" },
    beams: { type: "string", default: "1,3" },
    steps: { type: "string" },
    past: { type: "string", default: "128" },
    rank: { type: "string", default: "32" },
    "block-size": { type: "string", default: "32" },
    "no-spin": { type: "boolean", default: false },
    python: { type: "string" },
  });
  const { shape } = options;
  const config = shapeOf(shape);
  const large = parametersOf(config).reduce((sum, { shape: [rows, columns = 1] }) => sum + rows! * columns, 0) > LARGE;
  const rounds = integer(options.rounds ?? (large ? 3 : 7), "rounds");
  const steps = integer(options.steps ?? (large ? 16 : 64), "steps");
  const past = integer(options.past, "past");
  const r = integer(options.rank, "rank");
  const threads = integer(options.threads, "threads");
  const batches = integers(options.batch ?? (large ? "1,4" : "1,4,16"), "batch");
  const loads = integers(options.beams, "beams")
    .flatMap((beams): Load[] => (beams > 1 ? [1] : batches).map((batch) => ({ past, batch, beams, steps })))
    .sort((a, b) => a.batch * a.beams - b.batch * b.beams);
  const spin = !options["no-spin"];
  const common = { shape, threads, spin, loads, repeats: 1, blockSize: integer(options["block-size"], "block-size") };
  const variants = variantsOf(common, r);
  const chosen = choose(variants, options.only);
  const python = chosen.some(({ engine }) => engine === "peft") ? findPython(options.python) : {};
  const machine = await inspectMachine({
    allowBusy: options["allow-busy"],
    versions: { "node-llama-cpp": versionOf("node-llama-cpp") },
  });
  const { variants: measured, ceilings, notes } = await measureVariants(chosen, { rounds, threads, python });

  /** Of a variant's load, round by round; llama.cpp has no beams. */
  const stepsOf = (name: string, load: Load | undefined): number[] | undefined => {
    const own = variants.find((variant) => variant.name === name)?.settings.loads;
    const at = own && load ? own.indexOf(load) : -1;
    return at < 0 ? undefined : measured.get(name)?.rounds.map((round) => round[at]!.stepMs);
  };
  /** How many times as fast one is as the other. */
  const faster = (one: string, other: string, load: Load): Summary | undefined => {
    const [a, b] = [stepsOf(one, load), stepsOf(other, load)];
    return a && b && ratios(b, a);
  };
  const cell = (summary: Summary | undefined) => (summary ? spread(summary) : "");

  const sections: string[] = [];
  const results: Record<string, object[]> = {};
  for (const load of loads) {
    const rows: string[][] = [];
    for (const [name, { info, rounds }] of measured) {
      const own = variants.find((variant) => variant.name === name)!.settings.loads.indexOf(load);
      const times = stepsOf(name, load);
      if (!times) continue;
      const { peakRss, readBytes } = info as unknown as DecodeInfo;
      const read = readBytes[own]!;
      const [stepMs, prefillMs] = [summarize(times), summarize(rounds.map((round) => round[own]!.prefillMs))];
      const bare = stepsOf(NAMES.bare, load);
      const toBare = bare && name !== NAMES.bare ? ratios(times, bare) : undefined;
      const tokensPerSecond = (1000 * load.batch) / stepMs.median;
      results[name] ??= [];
      results[name].push({
        ...{ load, stepMs, tokensPerSecond, prefillMs, toBare },
        ...{ readBytes: read, peakRssBytes: peakRss[own], roundStepMs: times },
      });
      const operations = promptOperations(config, past) * load.batch;
      rows.push([
        name,
        spread(stepMs),
        tokensPerSecond.toFixed(1),
        cell(toBare),
        (read / 1e6).toFixed(0),
        share(read, stepMs.median, ceilings.bytes),
        spread(prefillMs, 0),
        share(operations, prefillMs.median, ceilings.int8),
        megabytes(peakRss[own]!),
      ]);
    }
    const head = [nameOf(load), "ms a step", "tokens/s", "time / bare", "MB read", "of memory's ceiling"];
    if (rows.length === 0) continue; // llama.cpp has no beams
    sections.push(table([...head, `prompt of ${past}, ms`, "of int8's ceiling", "peak RSS"], rows));
  }

  const compared = RATIOS.map(([one, other, known]) => {
    const of = loads.map((load) => {
      const ratio = faster(one, other, load);
      return { load: nameOf(load), ratio, known: load.batch === 1 ? known?.[load.beams] : undefined };
    });
    return { name: `${one} over ${other}`, of };
  }).filter(({ of }) => of.some(({ ratio }) => ratio));
  if (compared.length > 0) {
    const rows = compared.map(({ name, of }) => [
      name,
      ...of.map(({ ratio, known }) => (ratio && known ? `${cell(ratio)} (${known})` : cell(ratio))),
    ]);
    sections.push(table(["tokens a second", ...loads.map(nameOf)], rows));
  }

  const alone = loads.find(({ batch, beams }) => batch === 1 && beams === 1);
  const searches = loads.filter(({ beams }) => beams > 1);
  const beamCosts = [...measured.keys()].flatMap((name) =>
    searches.flatMap((load) => {
      const [one, many] = [stepsOf(name, alone), stepsOf(name, load)];
      if (!one || !many) return [];
      const apart = one.map((ms) => ms * load.beams);
      return [{ name, beams: load.beams, cost: ratios(many, apart) }];
    }),
  );
  if (beamCosts.length > 0) {
    const rows = beamCosts.map(({ name, beams, cost }) => [`${name}, ${beams} beams`, cell(cost)]);
    sections.push(table(["a step's time / that of as many single sequences", "(goal: at most 0.6)"], rows));
  }

  const said = [describe(ceilings), ...notes];
  const complete = variants.every((variant) => variant.engine === "peft" || chosen.includes(variant));
  const trial = !complete || rounds < (large ? 3 : 5) || shape === "tiny" || !spin;
  const infos: Record<string, Record<string, unknown>> = Object.fromEntries(
    [...measured].map(([name, { info, peakRss }]) => [name, { ...info, peakRss }]),
  );
  const { torch, transformers, peft } = Object.values(infos).find((info) => "torch" in info) ?? {};
  const versions = { ...machine.versions, ...(torch ? { torch, transformers, peft } : {}) } as Record<string, string>;
  report(`decode-${shape}`, { ...machine, versions }, trial, [...sections, said.join("\n")].join("\n\n"), {
    settings: { ...common, rank: r, rounds },
    ...{ ceilings, notes, results, compared, beamCosts, infos },
  });
});
