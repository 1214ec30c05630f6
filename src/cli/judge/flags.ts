/** @file The flags that say which model judges, and how it is asked; those of `eval` and `reproduce`. */
import { join } from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { InputError } from "../../base/index.ts";
import { Judge, judgeKey, judgeUrl, type Prices } from "../../evaluation/index.ts";
import { cacheDirectory } from "../../models/index.ts";
import { integer, number } from "../flags.ts";
import { note, warn } from "../terminal.ts";

export interface JudgeFlags {
  readonly judgeUrl?: string;
  readonly judgeModel?: string;
  readonly judgeKeyEnv?: string;
  readonly judgeTemperature: number | "none";
  readonly judgeMaxTokens: number;
  readonly judgeConcurrency: number;
  readonly judgeTimeout: number;
  readonly judgeAttempts: number;
  readonly judgePrices?: Prices;
  readonly yes?: boolean;
}

function temperature(text: string): number | "none" {
  return text === "none" ? "none" : number(0, 2)(text);
}

function prices(text: string): Prices {
  const [prompt, completion, ...more] = text.split(",").map((part) => (part.trim() === "" ? Number.NaN : Number(part)));
  if (prompt === undefined || completion === undefined || more.length || !(prompt >= 0) || !(completion >= 0)) {
    throw new InvalidArgumentError("It must be two prices for a million tokens, prompt and completion, e.g. 2.5,10.");
  }
  return { prompt, completion };
}

export function addJudgeFlags(command: Command): Command {
  return command
    .option("--judge-url <url>", "a judge's OpenAI-compatible endpoint, such as https://api.openai.com/v1")
    .option("--judge-model <name>", "the judge, as the endpoint names it")
    .option(
      "--judge-key-env <name>",
      "environment variable with its key (default: MILORA_JUDGE_KEY; OPENAI_API_KEY for api.openai.com)",
    )
    .option("--judge-prices <in,out>", "prices of a million prompt and completion tokens, for the estimate", prices)
    .option("--judge-temperature <t>", "temperature of the judge; none sends none", temperature, 0)
    .option("--judge-max-tokens <n>", "longest judgement", integer(1), 2048)
    .option("--judge-concurrency <n>", "requests under way at a time", integer(1), 4)
    .option("--judge-timeout <s>", "seconds for one attempt", number(1, 300), 120)
    .option("--judge-attempts <n>", "attempts of a request that meets a busy server", integer(1), 8)
    .option("--yes", "judge without asking whether it may cost what is estimated");
}

/** The judge that the flags name, if any. @throws InputError FLAG_INVALID */
export function judgeOf(flags: JudgeFlags): Judge | undefined {
  const { judgeUrl: url, judgeModel: model } = flags;
  if (url === undefined && model === undefined) {
    if (flags.judgeKeyEnv === undefined && flags.judgePrices === undefined) return undefined;
    throw new InputError("FLAG_INVALID", "judge", "needs --judge-url and --judge-model");
  }
  if (url === undefined || model === undefined) {
    throw new InputError(
      "FLAG_INVALID",
      url === undefined ? "--judge-model" : "--judge-url",
      "needs the other one, too",
    );
  }
  const base = judgeUrl(url);
  const key = judgeKey(base, flags.judgeKeyEnv);
  if (key !== undefined && /^http:\/\/(?!localhost\b|127\.|\[::1\])/.test(base)) {
    warn(`${base} is not encrypted: whoever is on the way can read the key`);
  }
  return new Judge({
    url: base,
    model,
    key,
    temperature: flags.judgeTemperature === "none" ? undefined : flags.judgeTemperature,
    maxTokens: flags.judgeMaxTokens,
    timeoutMs: flags.judgeTimeout * 1000,
    concurrency: flags.judgeConcurrency,
    attempts: flags.judgeAttempts,
    cache: join(cacheDirectory(), "judgments"),
    onRetry: (why, pauseMs) => note(`judge: ${why}; again in ${(pauseMs / 1000).toFixed(1)} s`),
  });
}
