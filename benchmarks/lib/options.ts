/** @file Command-line options that benchmarks share. */
import { type ParseArgsConfig, parseArgs } from "node:util";

type Options = NonNullable<ParseArgsConfig["options"]>;

const shared = {
  rounds: { type: "string" },
  threads: { type: "string", default: "2" },
  only: { type: "string" },
  "allow-busy": { type: "boolean", default: false },
  help: { type: "boolean", default: false },
} as const satisfies Options;

const SHARED_HELP = `  --rounds N      counted rounds of every variant
  --threads N     threads of every engine (2)
  --only A,B      variants whose names contain one of these texts
  --allow-busy    run although the machine is busy; results then go to results/local/`;

/** Parses the command line; `--help` prints `usage` and ends the process. */
export function parseOptions<O extends Options>(usage: string, own: O) {
  const { values } = parseArgs({ options: { ...shared, ...own }, strict: true });
  if ((values as { help?: boolean }).help) {
    process.stdout.write(`${usage}\n${SHARED_HELP}\n`);
    process.exit(0);
  }
  return values;
}

/** A positive integer option. */
export function integer(value: unknown, name: string): number {
  const parsed = Number(value);
  if (!Number.isInteger(parsed) || parsed < 1) throw new Error(`--${name} must be a positive integer, not ${value}`);
  return parsed;
}

/** A list of different positive integers, smallest first. */
export function integers(value: string, name: string): number[] {
  return [...new Set(value.split(",").map((part) => integer(part, name)))].sort((a, b) => a - b);
}

/** Whether a variant is asked for by `--only`. */
export function selected(only: unknown, name: string): boolean {
  return typeof only !== "string" || only.split(",").some((part) => name.includes(part.trim()));
}

/** The variants that `--only` asks for. */
export function choose<V extends { readonly name: string }>(variants: readonly V[], only: string | undefined): V[] {
  const chosen = variants.filter(({ name }) => selected(only, name));
  if (chosen.length > 0) return chosen;
  throw new Error(
    `--only ${only}: no variant's name has that in it; there are ${variants.map(({ name }) => name).join(", ")}`,
  );
}

/** Runs a benchmark's main function; an error is printed without a stack. */
export async function main(run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } catch (error) {
    process.stderr.write(`${process.env.DEBUG && error instanceof Error ? error.stack : error}\n`);
    process.exitCode = 1;
  }
}
