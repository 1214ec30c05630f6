/** @file Does it matter how many adapters are registered? Requests that arrive by chance, to a thousand and to ten. */
import { mkdirSync } from "node:fs";
import { Agent } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Random } from "../../src/base/index.ts";
import { type Answer, send } from "./http-client.ts";
import type { Machine } from "./machine.ts";
import { megabytes, report, spread, table } from "./report.ts";
import { promptOf, type ServeSettings } from "./serve-settings.ts";
import { metricsOf, ServerProcess } from "./server-process.ts";
import { installAdapters } from "./serving-model.ts";
import { shapeOf } from "./shapes.ts";
import { quantile, ratios, summarize } from "./statistics.ts";
import { arrivals, Zipf } from "./traffic.ts";

export interface ManySettings extends ServeSettings {
  readonly adapters: number;
  readonly zipf: number;
  readonly share: number;
  readonly seconds: number;
}

interface Run {
  readonly rounds: number;
  readonly model: string;
  readonly directory: string;
  readonly machine: Machine;
}

interface ManyRound {
  readonly requests: number;
  /** Answered with something else than 200, by status and code. */
  readonly refused: Readonly<Record<string, number>>;
  readonly firstP50: number;
  readonly firstP95: number;
  /** Median of the first token of adapters that nobody has asked for before; NaN where there were none. */
  readonly newP50: number;
  readonly tokensPerSecond: number;
  /** Adapters read from disk. */
  readonly loads: number;
}

const FEW = 10;
const TARGET = 1.3;
/** Different files of tensors; all others are links to them, so that the disk holds a thousand of any rank. */
const DISTINCT = 16;

class Side {
  readonly name: string;
  readonly rounds: ManyRound[] = [];
  readonly server: ServerProcess;
  readonly #zipf: Zipf;
  readonly #settings: ManySettings;
  readonly #agent = new Agent({ keepAlive: true });
  #asked = 0;
  readonly #known = new Set<number>();

  constructor(server: ServerProcess, settings: ManySettings, count: number) {
    this.name = `${count} adapters`;
    this.server = server;
    this.#settings = settings;
    this.#zipf = new Zipf(count, settings.zipf);
  }

  /** One request to an adapter by popularity. */
  async ask(uniform: number): Promise<Answer & { readonly isNew: boolean }> {
    const { shape, past, tokens } = this.#settings;
    const adapter = this.#zipf.at(uniform);
    const isNew = !this.#known.has(adapter);
    this.#known.add(adapter);
    const body = {
      model: `a${adapter}`,
      prompt: promptOf(past, shapeOf(shape).vocabSize, 0, this.#asked++),
      ...{ max_tokens: tokens, temperature: 0, ignore_eos: true },
      ...{ stream: true, stream_options: { include_usage: true } },
    };
    return { ...(await send({ agent: this.#agent, url: `${this.server.url}/v1/completions`, body })), isNew };
  }

  /** Requests a second when as many as may decode together are always there. */
  async capacity(): Promise<number> {
    const { streams } = this.#settings;
    const random = new Random(1);
    const total = 4 * streams;
    let left = total;
    const began = performance.now();
    const one = async (): Promise<void> => {
      while (left-- > 0) await this.ask(random.uniform());
    };
    await Promise.all(Array.from({ length: streams }, one));
    return total / ((performance.now() - began) / 1000);
  }

  /** @param seed the same one makes the same arrivals for all sides */
  async round(perSecond: number, seed: number): Promise<ManyRound> {
    const { seconds, tokens } = this.#settings;
    const random = new Random(seed);
    const times = arrivals(perSecond, seconds, random);
    const before = await metricsOf(this.server.url);
    const began = performance.now();
    const answers = await Promise.all(
      times.map(async (at) => {
        const uniform = random.uniform();
        await sleep(Math.max(0, at * 1000 - (performance.now() - began)));
        return this.ask(uniform);
      }),
    );
    const spent = (performance.now() - began) / 1000;
    const after = await metricsOf(this.server.url);
    const refused: Record<string, number> = {};
    const first: number[] = [];
    const ofNew: number[] = [];
    for (const { status, code, eventMs, done, isNew } of answers) {
      const why = status === 200 && done ? undefined : `${status} ${code ?? ""}`;
      if (why === undefined) {
        const [at = Number.NaN] = eventMs;
        first.push(at);
        if (isNew) ofNew.push(at);
      } else refused[why] = (refused[why] ?? 0) + 1;
    }
    return {
      ...{ requests: answers.length, refused, tokensPerSecond: (first.length * tokens) / spent },
      ...{ firstP50: quantile(first, 0.5), firstP95: quantile(first, 0.95), newP50: quantile(ofNew, 0.5) },
      loads: (after.get(LOADS) ?? Number.NaN) - (before.get(LOADS) ?? Number.NaN),
    };
  }
}

const LOADS = "milora_adapter_loads_total";

export async function serveMany(settings: ManySettings, { rounds, model, directory, machine }: Run): Promise<void> {
  const { shape, rank, threads, streams, adapters, share } = settings;
  const sides: Side[] = [];
  try {
    for (const count of [FEW, adapters]) {
      const data = join(directory, String(count));
      mkdirSync(data);
      process.stderr.write(`installing ${count} adapters of rank ${rank}\n`);
      const kind = { prefix: "a", method: "milora", options: { r: rank } };
      await installAdapters(data, model, [{ ...kind, count, distinct: Math.min(count, DISTINCT) }]);
      const set = [`limits.maxBatch=${streams}`, `adapterPrecision=${settings.precision}`];
      sides.push(new Side(await ServerProcess.start({ model, name: "backbone", data, threads, set }), settings, count));
    }
    const [few, many] = sides as [Side, Side];
    await few.capacity(); // makes sessions
    const capacity = await few.capacity();
    await many.capacity();
    const perSecond = share * capacity;
    process.stderr.write(`${capacity.toFixed(2)} requests a second at most, ${perSecond.toFixed(2)} from now on\n`);
    for (let round = 0; round <= rounds; round++) {
      process.stderr.write(`\rround ${round}/${rounds}`);
      for (const side of round % 2 === 0 ? sides : sides.toReversed()) {
        const result = await side.round(perSecond, round + 1);
        if (round > 0) side.rounds.push(result);
      }
    }
    process.stderr.write("\r");
    const slower = ratios(
      many.rounds.map(({ firstP95 }) => firstP95),
      few.rounds.map(({ firstP95 }) => firstP95),
    );
    const text = table(
      ["", "first token p50, ms", "p95", "p50 of new adapters", "tokens/s", "requests", "refused", "loads", "peak RSS"],
      sides.map((side) => {
        const of = (key: "firstP50" | "firstP95" | "newP50" | "tokensPerSecond") =>
          spread(summarize(side.rounds.map((one) => one[key])), 0);
        const sum = (count: (round: ManyRound) => number) =>
          String(side.rounds.reduce((all, one) => all + count(one), 0));
        return [
          ...[side.name, of("firstP50"), of("firstP95"), of("newP50"), of("tokensPerSecond")],
          sum(({ requests }) => requests),
          sum(({ refused }) => Object.values(refused).reduce((a, b) => a + b, 0)),
          sum(({ loads }) => loads),
          megabytes(side.server.memory().peakRss),
        ];
      }),
    );
    const line = `p95 of the first token, ${many.name} / ${few.name}: ×${spread(slower)}, to be at most ${TARGET}`;
    const trial = rounds < 3 || shape === "tiny" || settings.seconds < 30;
    report(`serve-${adapters}-adapters-${shape}`, machine, trial, `${text}\n\n${line}`, {
      settings: { ...settings, rounds },
      ...{ capacity, perSecond, slower },
      results: Object.fromEntries(sides.map(({ name, rounds: all }) => [name, all])),
    });
    const failures = sides.flatMap(({ server }) => server.failures);
    if (failures.length > 0) throw new Error(`a server wrote of failures:\n${failures.join("\n")}`);
  } finally {
    for (const { server } of sides) server.kill();
  }
}
