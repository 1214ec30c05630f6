/** @file `milora demo`: two tenants, two methods, one bundled backbone; everything measured on this machine, now. */
import type { Command } from "commander";
import { runDemo } from "../demo/run.ts";
import { examples, jsonFlag, threadsFlag } from "../flags.ts";

export function configure(command: Command): void {
  examples(
    command
      .option("--output <dir>", "where adapters and results.json are written", "runs/demo")
      .option("--quick", "a few steps and rows only, to see that everything runs")
      .addOption(threadsFlag())
      .addOption(jsonFlag())
      .action(runDemo),
    ["milora demo", "milora demo --quick --json --output runs/quick"],
  );
}
