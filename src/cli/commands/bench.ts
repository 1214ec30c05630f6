/** @file `milora bench`: what this machine takes for a server's work, as a profile for `milora plan`. */
import { type Command, Option } from "commander";
import { InputError, writeFileAtomic } from "../../base/index.ts";
import { methods as known } from "../../methods/index.ts";
import type { DeviceName } from "../../runtime/index.ts";
import { measureProfile, type Profile } from "../../serving/index.ts";
import { deviceFlag, examples, integer, jsonFlag, modelFlag, needed, threadsFlag, weightsFlag } from "../flags.ts";
import { grouped, note, paint, print, printJson, table, warn } from "../terminal.ts";

interface Flags {
  readonly model: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly device?: DeviceName;
  readonly adapterPrecision?: "float32" | "float16" | "int8";
  readonly kvPrecision?: "float32" | "float16";
  readonly adapterMethod: string;
  readonly rank: number;
  readonly maxBatch: number;
  readonly output: string;
  readonly quick?: boolean;
  readonly json?: boolean;
}

/** Share of the processors in use by others, above which times mean little. */
const BUSY = 0.1;

export function configure(command: Command): void {
  examples(
    command
      .addOption(modelFlag())
      .addOption(weightsFlag())
      .addOption(threadsFlag())
      .addOption(deviceFlag())
      .addOption(
        new Option("--adapter-precision <form>", "what adapters are held as (default: as a server does)").choices([
          "float32",
          "float16",
          "int8",
        ]),
      )
      .addOption(
        new Option("--kv-precision <form>", "what keys and values are held as (default: as a server does)").choices([
          "float32",
          "float16",
        ]),
      )
      .option("--adapter-method <names>", "methods of the adapters, separated by commas", "milora,moelora,lora")
      .addOption(new Option("--rank <n>", "their rank").argParser(integer(1)).default(16))
      .addOption(new Option("--max-batch <n>", "most sequences that decode together").argParser(integer(1)).default(16))
      .addOption(needed(new Option("--output <file>", "where the profile is written")))
      .option("--quick", "a few steps of everything only, to see that it works")
      .addOption(jsonFlag())
      .action(bench),
    [
      "milora bench --model assets/tiny-llama --output profile.json",
      "milora bench --model DIR --weights int4 --adapter-method milora --rank 32 --output profile.json",
    ],
  );
}

async function bench(flags: Flags): Promise<void> {
  const { model, weights, threads, device, adapterPrecision, kvPrecision, rank, maxBatch, output, quick, json } = flags;
  const names = flags.adapterMethod.split(",").map((name) => name.trim());
  const unknown = names.filter((name) => !known.has(name));
  if (unknown.length > 0) {
    const text = `no method ${unknown.join(", ")}; there are ${[...known.keys()].join(", ")}`;
    throw new InputError("FLAG_INVALID", "--adapter-method", text);
  }
  const profile = await measureProfile({
    ...{ model, weights, threads, device, adapterPrecision, kvPrecision, maxRows: maxBatch, quick: quick ?? false },
    methods: names.map((name) => ({ name, options: { r: rank } })),
    onProgress: (what) => note(`measuring ${what} …`),
  });
  writeFileAtomic(output, `${JSON.stringify(profile, undefined, 2)}\n`);
  if (profile.machine.busy > BUSY) {
    const share = Math.round(100 * profile.machine.busy);
    warn(`others used ${share} % of the processors; measure again on a quiet machine`);
  }
  if (json) printJson({ output, ...profile });
  else show(profile, output);
}

function show({ machine, model, methods, http }: Profile, output: string): void {
  const where = machine.device === "cpu" ? "" : `, ${machine.device}`;
  print(`${paint("bold", machine.cpu)}, ${machine.threads} threads${where}; ${model.name}, ${model.weights}\n`);
  const ms = (value: number | undefined): string => (value === undefined ? "" : value.toFixed(1));
  const most = methods[0]!.step.at(-1)!.rows;
  print(
    table(
      ["ms", "1 sequence", `${most}`, `${most}, an adapter each`, "256 tokens read", "come and go", "load", "MiB"],
      methods.map(({ name, step, read, changedMs, loadMs, adapterBytes }) => [
        name,
        ms(step[0]?.one),
        ms(step.at(-1)?.one),
        ms(step.at(-1)?.each),
        ms(read.find(({ tokens }) => tokens === 256)?.ms),
        ms(changedMs),
        ms(loadMs),
        (adapterBytes / 2 ** 20).toFixed(1),
      ]),
    ),
  );
  print(`\nHTTP: ${http.requestMs.toFixed(2)} ms a request, ${http.tokenMs.toFixed(3)} ms a token`);
  print(`a model takes ${grouped(Math.round(model.bytes / 2 ** 20))} MiB; written to ${output}`);
}
