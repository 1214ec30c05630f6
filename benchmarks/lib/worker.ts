/**
 * @file Variants in processes of their own that take turns: the parent asks one after the other for a round, so that
 * they share the machine's good and bad moments, and each has its own peak memory.
 *
 * The language is JSON lines: the child writes `{"ready": {...}}`, then one `{"round": {...}}` for each line `round` it
 * reads, and `{"end": {"peakRss": bytes}}` after `end`; anything else that it prints is passed through to stderr.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";

type Message = { ready?: unknown; round?: unknown; end?: { peakRss: number } };

/** Child side: serves rounds until told to end. Never returns. */
export async function serve<R>(setup: () => Promise<{ info: object; round: () => Promise<R> }>): Promise<void> {
  const say = (message: Message) => process.stdout.write(`${JSON.stringify(message)}\n`);
  const { info, round } = await setup();
  say({ ready: info });
  for await (const line of createInterface({ input: process.stdin })) {
    if (line === "round") say({ round: await round() });
    if (line === "end") break;
  }
  say({ end: { peakRss: process.resourceUsage().maxRSS * 1024 } });
  process.stdout.end(() => process.exit(0));
}

/** Parent side of one variant. */
export class Worker<R> {
  readonly name: string;
  readonly rounds: R[] = [];
  info: Readonly<Record<string, unknown>> = {};
  peakRss = Number.NaN;
  readonly #child: ChildProcess;
  /** It is gone. */
  #error: Error | undefined;
  #waiting: { key: keyof Message; resolve: (value: unknown) => void; reject: (error: Error) => void } | undefined;

  private constructor({ name, command, args, environment }: Variant) {
    this.name = name;
    const env = { ...process.env, ...environment };
    this.#child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"], env });
    this.#child.stdin!.on("error", () => {}); // its end is told once
    this.#child.on("error", (error) => this.#fail(error));
    this.#child.on("exit", (code, signal) =>
      this.#fail(new Error(`${name} ended early (${signal ?? `code ${code}`})`)),
    );
    createInterface({ input: this.#child.stdout! }).on("line", (line) => this.#hear(line));
  }

  /** Starts a variant and waits until it is ready. */
  static async start<R>(variant: Variant): Promise<Worker<R>> {
    const worker = new Worker<R>(variant);
    worker.info = (await worker.#wait("ready")) as Record<string, unknown>;
    return worker;
  }

  async round(): Promise<R> {
    this.#child.stdin!.write("round\n");
    const result = (await this.#wait("round")) as R;
    this.rounds.push(result);
    return result;
  }

  async end(): Promise<void> {
    this.#child.stdin!.write("end\n");
    this.peakRss = ((await this.#wait("end")) as { peakRss: number }).peakRss;
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  #wait(key: keyof Message): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#error) reject(this.#error);
      else this.#waiting = { key, resolve, reject };
    });
  }

  #hear(line: string): void {
    let message: Message | undefined;
    try {
      message = JSON.parse(line) as Message;
    } catch {
      message = undefined;
    }
    const waiting = this.#waiting;
    if (waiting && message !== null && typeof message === "object" && waiting.key in message) {
      this.#waiting = undefined;
      waiting.resolve(message[waiting.key]);
    } else process.stderr.write(`${this.name}: ${line}\n`);
  }

  #fail(error: Error): void {
    this.#error ??= error;
    this.#waiting?.reject(error);
    this.#waiting = undefined;
  }
}

/**
 * Runs `rounds` rounds of all workers in turn, every other round backwards, so that no variant always follows the same
 * one.
 * @param warmed no round is run before them that does not count
 */
export async function takeTurns<R>(workers: readonly Worker<R>[], rounds: number, warmed = false): Promise<void> {
  for (let round = warmed ? 1 : 0; round <= rounds; round++) {
    process.stderr.write(`\rround ${round}/${rounds}`);
    for (const worker of round % 2 === 0 ? workers : workers.toReversed()) await worker.round();
    if (round === 0) for (const worker of workers) worker.rounds.length = 0;
  }
  process.stderr.write("\r");
  for (const worker of workers) await worker.end();
}

/** A process to be started. */
export interface Variant {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
}

/** What came of a variant. */
export interface Measured<R> {
  readonly info: Readonly<Record<string, unknown>>;
  readonly rounds: readonly R[];
  readonly peakRss: number;
}

/**
 * Starts all variants and runs rounds of them in turn.
 */
export async function measure<R>(
  variants: readonly Variant[],
  rounds: number,
  options: {
    /** A variant that is ready has warmed up: no round is needed for that. */
    readonly warmed?: boolean;
    /** Never two processes at a time, for memory that holds one only: each is started anew for every round, `warmed`. */
    readonly apart?: boolean;
  } = {},
): Promise<Map<string, Measured<R>>> {
  const workers = new Map<string, Worker<R>[]>(variants.map(({ name }) => [name, []]));
  const start = async (variant: Variant): Promise<Worker<R>> => {
    const worker = await Worker.start<R>(variant);
    workers.get(variant.name)!.push(worker);
    return worker;
  };
  try {
    if (options.apart) {
      for (let round = 1; round <= rounds; round++) {
        for (const variant of round % 2 === 1 ? variants : variants.toReversed()) {
          process.stderr.write(`round ${round}/${rounds}, ${variant.name}\n`);
          const worker = await start(variant);
          await worker.round();
          await worker.end();
        }
      }
    } else {
      for (const variant of variants) {
        process.stderr.write(`starting ${variant.name}\n`);
        await start(variant);
      }
      await takeTurns([...workers.values()].flat(), rounds, options.warmed);
    }
  } finally {
    for (const worker of [...workers.values()].flat()) worker.kill();
  }
  return new Map(
    [...workers].map(([name, all]) => [
      name,
      {
        info: all.at(-1)?.info ?? {},
        rounds: all.flatMap((worker) => worker.rounds),
        peakRss: Math.max(...all.map(({ peakRss }) => peakRss)),
      },
    ]),
  );
}
