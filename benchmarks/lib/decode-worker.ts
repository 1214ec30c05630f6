/** @file What the variants of `decode` and `prefill` that are JavaScript share: warming up, rounds, and taking times. */
import type { DecodeInfo, DecodeSettings, Load, LoadRound } from "./decode-settings.ts";
import { quantile } from "./statistics.ts";
import { serve } from "./worker.ts";

/** As `LoadRound`, with every step. */
export interface Answer {
  readonly prefillMs: number;
  readonly stepMs: readonly number[];
}

export interface Answering {
  /** Answers a load once. */
  answer(load: Load): Promise<Answer>;
  /** See `DecodeInfo`; asked for after the first answer. */
  readBytes(load: Load): number;
  /** Told with the results. */
  readonly info?: object;
}

/** Serves rounds. @param warm how often each load is answered before the first */
export function serveLoads(
  { loads, repeats }: DecodeSettings,
  setup: () => Promise<Answering>,
  warm = 1,
): Promise<void> {
  return serve(async () => {
    const { answer, readBytes, info } = await setup();
    const peakRss: number[] = [];
    for (const load of loads) {
      for (let i = 0; i < warm; i++) await answer(load);
      peakRss.push(process.resourceUsage().maxRSS * 1024);
    }
    const round = async (): Promise<LoadRound[]> => {
      const answers = loads.map((): (Answer & { cpuMs: number })[] => []);
      for (let i = 0; i < repeats; i++) {
        for (const [at, load] of loads.entries()) {
          const before = process.cpuUsage();
          const times = await answer(load);
          const { user, system } = process.cpuUsage(before);
          answers[at]!.push({ ...times, cpuMs: (user + system) / 1000 });
        }
      }
      const median = (values: readonly number[]) => quantile(values, 0.5);
      return answers.map((all) => ({
        prefillMs: median(all.map(({ prefillMs }) => prefillMs)),
        stepMs: median(all.flatMap(({ stepMs }) => stepMs)),
        cpuMs: median(all.map(({ cpuMs }) => cpuMs)),
      }));
    };
    const said: DecodeInfo = { peakRss, readBytes: loads.map(readBytes) };
    return { info: { ...info, ...said }, round };
  });
}

/** @param times when the request was made, and when all sequences had their first token, their second, … */
export function answerOf(times: readonly number[], tokens: number): Answer {
  if (times.length !== tokens + 1) throw new Error(`${times.length - 1} tokens came of ${tokens}`);
  const [prefillMs, ...stepMs] = times.slice(1).map((time, i) => time - times[i]!);
  return { prefillMs: prefillMs!, stepMs };
}
