/** @file Flags that several commands share, and the checks of their values. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { InputError } from "../base/index.ts";
import { DEVICE_NAMES } from "../runtime/index.ts";

const neededFlags = new WeakMap<Option, (command: Command) => boolean>();

/**
 * Marks a flag that a command cannot do without. Commander's own mandatory options are looked at before unknown ones,
 * so that a misspelt flag would be reported as missing.
 *
 * @param when whether it is needed, given the other flags; default always
 */
export function needed(option: Option, when?: (command: Command) => boolean): Option {
  neededFlags.set(option, when ?? (() => true));
  if (!when) option.description = `${option.description} (required)`;
  return option;
}

/** Throws `InputError` FLAG_INVALID naming all needed flags that were not given. */
export function checkNeeded(command: Command): void {
  const missing = command.options.filter(
    (option) => neededFlags.get(option)?.(command) && command.getOptionValue(option.attributeName()) === undefined,
  );
  if (missing.length === 0) return;
  throw new InputError("FLAG_INVALID", command.name(), `needs ${missing.map((option) => option.long).join(", ")}`);
}

/** A whole number of at least `least`. */
export function integer(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text.trim()) || !Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`It must be a whole number of at least ${least}.`);
    }
    return value;
  };
}

/** A number in [least, most]. */
export function number(least: number, most = Number.POSITIVE_INFINITY): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || Number.isNaN(value) || value < least || value > most) {
      const upper = most === Number.POSITIVE_INFINITY ? "" : ` and at most ${most}`;
      throw new InvalidArgumentError(`It must be a number of at least ${least}${upper}.`);
    }
    return value;
  };
}

/** `1,5,77` */
export function tokenIds(text: string): number[] {
  const parts = text.split(",").map((part) => part.trim());
  if (!parts.every((part) => /^\d+$/.test(part))) {
    throw new InvalidArgumentError("It must be token ids separated by commas, e.g. 1,5,77.");
  }
  return parts.map(Number);
}

/** For a flag that may be given several times. */
export function collect(value: string, previous: readonly string[] | undefined): string[] {
  return [...(previous ?? []), value];
}

/** @param when as of `needed` */
export function modelFlag(when?: (command: Command) => boolean): Option {
  return needed(
    new Option("--model <dir>", "backbone: a Hugging Face directory, a .gguf file, or ORG/NAME once pulled"),
    when,
  );
}

export function adapterFlag(): Option {
  return new Option("--adapter <dir>", "adapter: a directory as PEFT saves it");
}

export function weightsFlag(): Option {
  return new Option(
    "--weights <form>",
    "how the backbone is held in memory (default: float32, or as it was prepared)",
  ).choices(["float32", "int8", "int4"]);
}

export function templateFlag(): Option {
  return new Option(
    "--template <name|file>",
    "how a row becomes a prompt: alpaca, chat, none, or a Jinja file",
  ).default("alpaca");
}

export function jsonFlag(): Option {
  return new Option("--json", "print one line of JSON on stdout and nothing else there");
}

export function threadsFlag(): Option {
  return new Option("--threads <n>", "CPU threads (default: one per core)").argParser(integer(1));
}

export function deviceFlag(): Option {
  return new Option("--device <name>", "where it is computed: cpu (default), webgpu or cuda").choices(DEVICE_NAMES);
}

/** The end of a command's help. */
export function examples(command: Command, lines: readonly string[]): Command {
  return command.addHelpText("after", `\nExamples:\n${lines.map((line) => `  $ ${line}`).join("\n")}`);
}
