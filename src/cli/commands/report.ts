/** @file `milora report`: a run as one page of pictures. */
import type { Command } from "commander";
import { writeEvents } from "../../training/index.ts";
import { examples, jsonFlag } from "../flags.ts";
import { writeReport } from "../report/index.ts";
import { print, printJson } from "../terminal.ts";

export function configure(command: Command): void {
  examples(
    command
      .argument("<run>", "the run's directory")
      .option("--tensorboard", "write its numbers as an event file for TensorBoard, too, into tensorboard/ of the run")
      .addOption(jsonFlag())
      .action((run: string, flags: { tensorboard?: boolean; json?: boolean }) => {
        const report = writeReport(run);
        const events = flags.tensorboard ? writeEvents(run) : undefined;
        if (flags.json) printJson({ report, ...(events && { events }) });
        else print([report, ...(events ? [events] : [])].join("\n"));
      }),
    ["milora report runs/subjects", "milora report runs/subjects --tensorboard"],
  );
}
