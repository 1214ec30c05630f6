/** @file `milora report`: a run as one page of pictures. */
import type { Command } from "commander";
import { examples, jsonFlag } from "../flags.ts";
import { writeReport } from "../report/index.ts";
import { print, printJson } from "../terminal.ts";

export function configure(command: Command): void {
  examples(
    command
      .argument("<run>", "the run's directory")
      .addOption(jsonFlag())
      .action((run: string, flags: { json?: boolean }) => {
        const report = writeReport(run);
        if (flags.json) printJson({ report });
        else print(report);
      }),
    ["milora report runs/subjects"],
  );
}
