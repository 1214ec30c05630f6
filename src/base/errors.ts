/** @file The one error class of the project: a stable code, a message that says what to do, and who is to blame. */

/**
 * Every error a user may see.
 *
 * `code` is stable and documented in docs/errors.md; `message` says what is wrong and what to do about it.
 * Each room declares its own subclasses in its `errors.ts`; the command line prints `message` on one line and
 * exits with `exitCode`, HTTP answers with the status its room maps the code to. A stack never reaches a user.
 */
export class MiloraError extends Error {
  readonly code: string;
  /** 2 for bad input (the default); 1 for a failure that is not the user's; 130 for an interrupt. */
  readonly exitCode: number;

  constructor(code: string, message: string, options: { cause?: unknown; exitCode?: number } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.exitCode = options.exitCode ?? 2;
  }
}

/** Problems that are told of one input, and characters of each: a hostile one has millions. */
const MOST_PROBLEMS = 100;
const LONGEST_PROBLEM = 4000;

/** How a list ends of which only the beginning is given. */
const MORE = /^and (\d+) more$/;

const countOf = (problems: readonly string[]): number =>
  problems.length - 1 + Number(MORE.exec(problems.at(-1) ?? "")?.[1] ?? 1);

function shortened(problems: readonly string[]): readonly string[] {
  const more = problems.length - MOST_PROBLEMS;
  const told = more > 0 ? [...problems.slice(0, MOST_PROBLEMS), `and ${more} more`] : problems;
  if (told.every(({ length }) => length <= LONGEST_PROBLEM)) return told;
  return told.map((text) => (text.length > LONGEST_PROBLEM ? `${text.slice(0, LONGEST_PROBLEM)}…` : text));
}

/** A file, config or flag that does not hold what it should. Lists every problem at once, up to a hundred. */
export class InputError extends MiloraError {
  readonly problems: readonly string[];

  /** @param where the file, field or flag the problems are in */
  constructor(code: string, where: string, problems: string | readonly string[], options: { cause?: unknown } = {}) {
    const all = typeof problems === "string" ? [problems] : problems;
    const list = shortened(all);
    const text = list.length === 1 ? list[0] : `${countOf(all)} problems: ${list.join("; ")}`;
    super(code, `${where}: ${text}`, options);
    this.problems = list;
  }
}

/** The system's own message of a failed file operation, or the text of anything thrown. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
