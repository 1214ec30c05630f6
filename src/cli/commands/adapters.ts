/** @file `milora adapters`: what is done to adapter directories as a whole. For now: merging into the backbone. */
import { type Command, Option } from "commander";
import { Adapter, mergeAdapter } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import { examples, jsonFlag, needed } from "../flags.ts";
import { print, printJson } from "../terminal.ts";

interface Flags {
  readonly model: string;
  readonly adapter: string;
  readonly output: string;
  readonly dtype?: "float32";
  readonly json?: boolean;
}

const EXAMPLE = "milora adapters merge --model assets/tiny-llama --adapter runs/subjects/best --output runs/merged";

export function configure(command: Command): void {
  examples(command, [EXAMPLE, `${EXAMPLE} --json`]);
  const merge = command.command("merge").description("Fold an adapter into a copy of its backbone's checkpoint.");
  examples(
    merge
      .addOption(needed(new Option("--model <dir>", "backbone: a directory as Hugging Face saves it")))
      .addOption(needed(new Option("--adapter <dir>", "the adapter to fold in")))
      .addOption(needed(new Option("--output <dir>", "where the merged model directory is written")))
      .addOption(
        new Option("--dtype <name>", "store weights as this (default: as the backbone does)").choices(["float32"]),
      )
      .addOption(jsonFlag())
      .action(run),
    [EXAMPLE, `${EXAMPLE} --json`],
  );
}

async function run({ model, adapter: directory, output, dtype, json }: Flags): Promise<void> {
  using adapter = Adapter.load(directory, readBackboneConfig(model));
  const changed = await mergeAdapter(adapter, model, output, dtype ? { dtype } : {});
  if (json) printJson({ output, changed });
  else print(`${changed.length} weights changed, written to ${output}`);
}
