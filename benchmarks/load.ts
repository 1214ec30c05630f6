/** @file How long a model takes from a cold process to its first token, and how much memory: from the checkpoint and prepared. */
import { closeSync, fsyncSync, mkdirSync, mkdtempSync, openSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import { prepareModel } from "../src/models/index.ts";
import { writeRandomCheckpoint } from "./lib/checkpoint.ts";
import type { LoadRound, LoadSettings } from "./lib/load-settings.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions, selected } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { shapeOf } from "./lib/shapes.ts";
import { type Summary, summarize } from "./lib/statistics.ts";
import { Worker } from "./lib/worker.ts";

const USAGE = `npm run load -- [options]
  --shape NAME    tinyllama-1.1b (default), smollm2-135m, tiny, …
  --past N        prompt tokens (8)
  --directory DIR where the models are written, and deleted afterwards (the temporary one; takes 11 GB)`;

const FORMS = ["float32", "int8", "int4"] as const;

interface Variant {
  readonly name: string;
  readonly weights: LoadSettings["weights"];
  readonly prepared: boolean;
  readonly cold: boolean;
}

interface Row {
  readonly loadMs: Summary;
  readonly firstTokenMs: Summary;
  readonly firstTokenCpuMs: Summary;
  readonly processMs: Summary;
  readonly laterTokenMs: Summary;
  readonly firstTokenRss: Summary;
  readonly peakRss: Summary;
  /** Bytes of the file that is loaded. */
  readonly fileBytes: number;
  readonly rounds: readonly LoadRound[];
}

const DONT_NEED = 4; // POSIX_FADV_DONTNEED
/** Takes a directory's files out of the page cache, as far as nobody maps them. */
function makeCold(directory: string): void {
  const advise = koffi.load(null).func("posix_fadvise", "int", ["int", "int64_t", "int64_t", "int"]);
  for (const name of readdirSync(directory)) {
    const file = openSync(join(directory, name), "r");
    fsyncSync(file); // what is not on the disk yet stays in memory
    advise(file, 0, 0, DONT_NEED);
    closeSync(file);
  }
}

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "tinyllama-1.1b" },
    past: { type: "string", default: "8" },
    directory: { type: "string", default: tmpdir() },
  });
  const shape = String(options.shape);
  const rounds = integer(options.rounds ?? 5, "rounds");
  const threads = integer(options.threads, "threads");
  const past = integer(options.past, "past");
  const variants = FORMS.flatMap((weights) =>
    [false, true].flatMap((prepared): Variant[] =>
      (process.platform === "linux" ? [false, true] : [false]).map((cold) => ({
        name: [weights, prepared && "prepared", cold && "cold"].filter(Boolean).join(", "),
        ...{ weights, prepared, cold },
      })),
    ),
  );
  const chosen = variants.filter(({ name }) => selected(options.only, name));
  const machine = await inspectMachine({ allowBusy: options["allow-busy"] === true });
  const directory = mkdtempSync(join(String(options.directory), "milora-load-"));
  const measured = new Map<Variant, LoadRound[]>(chosen.map((variant) => [variant, []]));
  const fileBytes = new Map<Variant, number>();
  try {
    const checkpoint = join(directory, "checkpoint");
    mkdirSync(checkpoint);
    writeRandomCheckpoint(checkpoint, shapeOf(shape));
    for (const weights of new Set(chosen.filter(({ prepared }) => prepared).map((variant) => variant.weights))) {
      process.stderr.write(`preparing ${weights}\n`);
      await prepareModel(checkpoint, { weights, output: join(directory, weights) });
    }
    const script = fileURLToPath(new URL("workers/load-milora.js", import.meta.url));
    for (let round = 0; round < rounds; round++) {
      for (const variant of round % 2 === 0 ? chosen : chosen.toReversed()) {
        const { name, weights, prepared, cold } = variant;
        process.stderr.write(`round ${round + 1}/${rounds}: ${name}\n`);
        const model = prepared ? join(directory, weights) : checkpoint;
        fileBytes.set(variant, sizeOf(model));
        const settings: LoadSettings = { model, weights, threads, past };
        if (cold) makeCold(model);
        const worker = await Worker.start<LoadRound>({
          name,
          command: process.execPath,
          args: [script, JSON.stringify(settings)],
        });
        try {
          measured.get(variant)!.push(await worker.round());
        } finally {
          worker.kill();
        }
      }
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }

  const rows = new Map<string, Row>();
  for (const [variant, all] of measured) {
    const of = (key: keyof LoadRound) => summarize(all.map((one) => one[key]));
    rows.set(variant.name, {
      loadMs: of("loadMs"),
      firstTokenMs: of("firstTokenMs"),
      firstTokenCpuMs: of("firstTokenCpuMs"),
      processMs: of("processMs"),
      laterTokenMs: of("laterTokenMs"),
      firstTokenRss: of("firstTokenRss"),
      peakRss: of("peakRss"),
      fileBytes: fileBytes.get(variant)!,
      rounds: all,
    });
  }
  const text = table(
    [
      "",
      "load, ms",
      "first token, ms",
      "CPU, ms",
      "a later token, ms",
      "file",
      "RSS, first token",
      "/ file",
      "RSS, 8 tokens",
    ],
    [...rows].map(([name, row]) => [
      name,
      spread(row.loadMs, 0),
      spread(row.firstTokenMs, 0),
      spread(row.firstTokenCpuMs, 0),
      row.laterTokenMs.median.toFixed(0),
      megabytes(row.fileBytes),
      megabytes(row.firstTokenRss.median),
      (row.firstTokenRss.median / row.fileBytes).toFixed(2),
      megabytes(row.peakRss.median),
    ]),
  );
  const trial = chosen.length < variants.length || rounds < 3 || shape === "tiny";
  report(`load-${shape}`, machine, trial, text, {
    settings: { shape, threads, past, rounds },
    results: Object.fromEntries(rows),
  });
});

/** Bytes of a model's weights on disk. */
function sizeOf(directory: string): number {
  const files = readdirSync(directory).filter((name) => name.endsWith(".safetensors"));
  return files.reduce((total, name) => total + statSync(join(directory, name)).size, 0);
}
