#!/usr/bin/env node
/** @file The `milora` command. */
import { interruptWork } from "./interrupt.ts";
import { run } from "./program.ts";

// A reader that has seen enough (`milora … | head`) is no error; but work that it leaves is saved, and not said to be done.
let gone = false;
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  if (gone) return;
  gone = true;
  if (!interruptWork()) process.exit(0);
});
// That nobody reads the notes is no reason to stop.
process.stderr.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
});

process.exitCode = await run(process.argv.slice(2));
