#!/usr/bin/env node
/** @file The `milora` command. */
import { run } from "./program.ts";

// A reader that has seen enough (`milora … | head`) is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

process.exitCode = await run(process.argv.slice(2));
