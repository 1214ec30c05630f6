/** @file Training speed: optimizer steps of LoRA and MiLoRA here, and of LoRA in PyTorch with PEFT. */
import { fileURLToPath } from "node:url";
import { inspectMachine } from "./lib/machine.ts";
import { choose, integer, main, parseOptions } from "./lib/options.ts";
import { findPython, PYTHON_HELP, peftArguments } from "./lib/peft.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { quantile, ratios, summarize } from "./lib/statistics.ts";
import type { TrainRound, TrainSettings } from "./lib/train-settings.ts";
import { measure, type Variant } from "./lib/worker.ts";

const USAGE = `npm run train -- [options]
  --shape NAME    smollm2-135m (default), tiny, …
  --steps N       optimizer steps a round (2)
  --batch N       sequences a step (8)
  --length N      tokens a sequence (128)
  --rank N        rank of the adapters (32)
  ${PYTHON_HELP}`;

interface TrainVariant {
  readonly name: string;
  readonly method: string;
  readonly weights?: TrainSettings["weights"];
  readonly recompute?: TrainSettings["recompute"];
  readonly options: Readonly<Record<string, unknown>>;
}

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    steps: { type: "string", default: "2" },
    batch: { type: "string", default: "8" },
    length: { type: "string", default: "128" },
    rank: { type: "string", default: "32" },
    python: { type: "string" },
  });
  const shape = String(options.shape);
  const rounds = integer(options.rounds ?? 5, "rounds");
  const r = integer(options.rank, "rank");
  const common = {
    shape,
    threads: integer(options.threads, "threads"),
    batch: integer(options.batch, "batch"),
    length: integer(options.length, "length"),
    steps: integer(options.steps, "steps"),
  };
  const PEFT = `PyTorch + PEFT LoRA r${r}`;
  const variants: TrainVariant[] = [
    { name: `milora LoRA r${r}`, method: "lora", options: { r } },
    { name: `milora MiLoRA k=3 r${r}`, method: "milora", options: { r, top_k: 3 } },
    { name: `milora LoRA r${r} checkpointing`, method: "lora", options: { r }, recompute: "all" },
    {
      name: `milora MiLoRA k=3 r${r} checkpointing`,
      method: "milora",
      options: { r, top_k: 3 },
      recompute: "all",
    },
    { name: `milora LoRA r${r} nothing recomputed`, method: "lora", options: { r }, recompute: "nothing" },
    { name: `milora LoRA r${r} int8`, method: "lora", options: { r }, weights: "int8" },
    { name: `milora LoRA r${r} int4`, method: "lora", options: { r }, weights: "int4" },
  ];
  const { python, missing } = findPython(options.python);
  const note = missing && `${PEFT} left out: ${missing}`;
  if (python) variants.push({ name: PEFT, method: "lora", options: { r } });
  const chosen = choose(variants, options.only);
  const machine = await inspectMachine({ allowBusy: options["allow-busy"] === true });

  const script = fileURLToPath(new URL("workers/train-milora.js", import.meta.url));
  const commands = chosen.map(({ name, method, options: own, weights = "float32", recompute }): Variant => {
    const settings: TrainSettings = { ...common, method, options: own, weights, ...(recompute && { recompute }) };
    if (name === PEFT) return { name, command: python!, args: peftArguments(settings) };
    return { name, command: process.execPath, args: [script, JSON.stringify(settings)] };
  });
  const measured = await measure<TrainRound>(commands, rounds);

  const versions = { ...machine.versions, ...(measured.get(PEFT)?.info as Record<string, string> | undefined) };
  const tokens = common.batch * common.length;
  const stepMs = (name: string) => measured.get(name)?.rounds.map((round) => quantile(round.stepMs, 0.5));
  const peer = stepMs(PEFT);
  const results = [...measured].map(([name, worker]) => {
    const rounds = stepMs(name) ?? [];
    return {
      name,
      stepMs: summarize(rounds),
      tokensPerSecond: summarize(rounds.map((ms) => (tokens / ms) * 1000)),
      ...(peer && name !== PEFT && { speedup: ratios(peer, rounds) }),
      peakRssBytes: worker.peakRss,
      loss: worker.rounds.map(({ loss }) => loss),
      info: worker.info,
    };
  });
  const text = table(
    ["", "s/step", "tokens/s", "× PyTorch", "peak RSS", "loss, first and last round"],
    results.map((row) => [
      row.name,
      spread({
        ...row.stepMs,
        median: row.stepMs.median / 1e3,
        low: row.stepMs.low / 1e3,
        high: row.stepMs.high / 1e3,
      }),
      spread(row.tokensPerSecond, 0),
      row.speedup ? spread(row.speedup) : "",
      megabytes(row.peakRssBytes),
      `${row.loss.at(0)?.toFixed(3)} ${row.loss.at(-1)?.toFixed(3)}`,
    ]),
  );
  const trial = chosen.length < variants.length || rounds < 3 || shape === "tiny";
  const data = { settings: { ...common, rank: r, rounds }, note, results };
  report(`train-${shape}`, { ...machine, versions }, trial, note ? `${text}\n\n${note}` : text, data);
});
