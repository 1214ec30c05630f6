/** @file `milora adapters`: what is done to adapters as a whole: merging into the backbone, other formats, a server's. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { InputError } from "../../base/index.ts";
import { Adapter, exportGguf, exportPeft, mergeAdapter } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import { configureInstalled, INSTALL } from "../adapters/commands.ts";
import { examples, jsonFlag, modelFlag, needed } from "../flags.ts";
import { print, printJson } from "../terminal.ts";

interface MergeFlags {
  readonly model: string;
  readonly adapter: string;
  readonly output: string;
  readonly dtype?: "float32" | "bfloat16" | "float16";
  readonly maxShardSize?: number;
  readonly json?: boolean;
}

interface ExportFlags {
  readonly model: string;
  readonly adapter: string;
  readonly output: string;
  readonly format: "gguf" | "peft";
  readonly dtype?: "f32" | "f16";
  readonly json?: boolean;
}

const MERGE = "milora adapters merge --model assets/tiny-llama --adapter runs/lora/best --output runs/merged";
const EXPORT =
  "milora adapters export --model assets/tiny-llama --adapter runs/lora/best --format gguf --output lora.gguf";

export function configure(command: Command): void {
  examples(command, [MERGE, EXPORT, `${EXPORT} --json`, INSTALL]);
  examples(
    command
      .command("merge")
      .description("Fold an adapter into a copy of its backbone's checkpoint.")
      .addOption(modelFlag())
      .addOption(needed(new Option("--adapter <dir>", "the adapter to fold in")))
      .addOption(needed(new Option("--output <dir>", "where the merged model directory is written")))
      .addOption(
        new Option(
          "--dtype <name>",
          "store weights as this (default: as the backbone does; quantised ones float32)",
        ).choices(["float32", "bfloat16", "float16"]),
      )
      .addOption(
        new Option(
          "--max-shard-size <size>",
          "split weights into files of at most this, e.g. 5GB (default: as they are)",
        ).argParser(fileSize),
      )
      .addOption(jsonFlag())
      .action(merge),
    [MERGE, `${MERGE} --json`],
  );
  examples(
    command
      .command("export")
      .description("Write an adapter for another program: llama.cpp (gguf) or Hugging Face PEFT (peft).")
      .addOption(modelFlag())
      .addOption(needed(new Option("--adapter <dir>", "the adapter to export")))
      .addOption(needed(new Option("--format <name>", "the program's format").choices(["gguf", "peft"])))
      .addOption(needed(new Option("--output <path>", "the file (gguf) or directory (peft) to write")))
      .addOption(new Option("--dtype <name>", "gguf: how numbers are stored (default: f32)").choices(["f32", "f16"]))
      .addOption(jsonFlag())
      .action(exportAdapter),
    [
      EXPORT,
      "milora adapters export --model assets/tiny-llama --adapter runs/lora/best --format peft --output runs/peft",
    ],
  );
  configureInstalled(command);
}

/** `5GB`, `500MB`, or bytes; units are of 1000, as Hugging Face counts. */
function fileSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?) ?([kmg]b)?$/i.exec(text.trim());
  const units: Readonly<Record<string, number>> = { kb: 1e3, mb: 1e6, gb: 1e9 };
  const value = Number(match?.[1]) * (units[match?.[2]?.toLowerCase() ?? ""] ?? 1);
  if (!(value >= 1)) throw new InvalidArgumentError("It must be a size such as 5GB, 500MB, or a number of bytes.");
  return value;
}

async function merge({ model, adapter: directory, output, dtype, maxShardSize, json }: MergeFlags): Promise<void> {
  using adapter = Adapter.load(directory, readBackboneConfig(model));
  const changed = await mergeAdapter(adapter, model, output, { dtype, maxShardSize });
  if (json) printJson({ output, changed });
  else print(`${changed.length} weights changed, written to ${output}`);
}

async function exportAdapter({ model, adapter: directory, format, output, dtype, json }: ExportFlags): Promise<void> {
  if (format === "peft" && dtype) throw new InputError("FLAG_INVALID", "--dtype", "goes with --format gguf only");
  using adapter = Adapter.load(directory, readBackboneConfig(model));
  const written = format === "gguf" ? exportGguf(adapter, output, { dtype }) : await exportPeft(adapter, output);
  if (json) printJson({ output, format, written });
  else print(`${written.length} ${format === "gguf" ? "modules" : "tensors"}, written to ${output}`);
}
