/** @file How long `milora serve` takes until it answers: with a new data directory, with one that is there, after a kill. */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions } from "./lib/options.ts";
import { megabytes, report, spread, table } from "./lib/report.ts";
import { scratch } from "./lib/scratch.ts";
import { ServerProcess } from "./lib/server-process.ts";
import { preparedModel } from "./lib/serving-model.ts";
import { summarize } from "./lib/statistics.ts";

const USAGE = `npm run starting -- [options]
  --shape NAME     tinyllama-1.1b (default), smollm2-135m, tiny, …; int4, prepared`;

const CASES = ["a new data directory", "one that is there", "one whose server was killed"] as const;

interface Start {
  /** From the start of the process until requests are answered, s. */
  readonly ready: number;
  /** Until the first token of a prompt of five tokens, s. */
  readonly first: number;
  readonly rss: number;
}

await main(async () => {
  const options = parseOptions(USAGE, { shape: { type: "string", default: "tinyllama-1.1b" } });
  const machine = await inspectMachine({ allowBusy: options["allow-busy"] === true });
  const shape = String(options.shape);
  const threads = integer(options.threads, "threads");
  const rounds = integer(options.rounds ?? "5", "rounds");
  const model = await preparedModel(shape);
  using place = scratch(tmpdir(), "milora-starting-");
  const start = async (data: string, end: "stop" | "kill"): Promise<Start> => {
    const began = performance.now();
    const since = (): number => (performance.now() - began) / 1000;
    const server = await ServerProcess.start({ model, name: "backbone", data, threads });
    const ready = since();
    const body = JSON.stringify({ model: "backbone", prompt: [5, 6, 7, 8, 9], max_tokens: 1 });
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`${server.url}/v1/completions`, { method: "POST", headers, body });
    if (!answer.ok) throw new Error(await answer.text());
    const first = since();
    const { rss } = server.memory();
    if (end === "stop") await server.stop();
    else {
      server.kill();
      await new Promise<void>((resolve) => server.onEnd(() => resolve()));
    }
    return { ready, first, rss };
  };
  const starts: Start[][] = CASES.map(() => []);
  for (let round = 0; round < rounds; round++) {
    process.stderr.write(`round ${round + 1}/${rounds}\n`);
    const data = join(place.path, `data-${round}`);
    starts[0]!.push(await start(data, "stop"));
    starts[1]!.push(await start(data, "kill"));
    starts[2]!.push(await start(data, "stop"));
  }
  const text = table(
    ["", "ready, s", "first token, s", "resident then"],
    CASES.map((name, i) => [
      name,
      ...(["ready", "first"] as const).map((key) => spread(summarize(starts[i]!.map((one) => one[key])))),
      megabytes(summarize(starts[i]!.map(({ rss }) => rss)).median),
    ]),
  );
  const trial = rounds < 3 || shape === "tiny";
  report(`starting-${shape}`, machine, trial, text, { settings: { shape, threads, rounds }, starts });
});
