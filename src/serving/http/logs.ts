/** @file The server's log: one JSON line for each request, with its id; no prompt, answer or key. */
import { type Logger, pino } from "pino";
import type { ServerConfig } from "./config.ts";

export type { Logger };

/** @param stream where lines go; default standard error, so that standard output holds what was asked for */
export function createLog(
  { logLevel }: Pick<ServerConfig, "logLevel">,
  stream: { write(line: string): void } = pino.destination({ dest: 2, sync: true }),
): Logger {
  return pino(
    {
      level: logLevel,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: ["authorization", "*.authorization", "headers", "*.headers", "key", "*.key", "secret", "*.secret"],
    },
    stream,
  );
}
