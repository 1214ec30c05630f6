/** @file The settings of requests: what each may be, and what it is called in a body. */
import type { Mode, Settings } from "./state.ts";

export interface Setting {
  /** As in a body. */
  readonly name: string;
  readonly label: string;
  readonly hint: string;
  readonly least: number;
  readonly most: number;
  readonly whole?: true;
  /** `least` itself is not allowed. */
  readonly above?: true;
}

export const SETTINGS: readonly Setting[] = [
  { name: "max_tokens", label: "Most new tokens", hint: "empty: the server's", least: 1, most: 1e7, whole: true },
  { name: "temperature", label: "Temperature", hint: "0: always the likeliest token", least: 0, most: 100 },
  { name: "top_p", label: "Top p", hint: "draw from this share of probability", least: 0, most: 1, above: true },
  { name: "top_k", label: "Top k", hint: "draw from the k likeliest; 0: all", least: -1, most: 1e6, whole: true },
  { name: "min_p", label: "Min p", hint: "least share of the likeliest's", least: 0, most: 1 },
  { name: "seed", label: "Seed", hint: "same seed, same tokens", least: 0, most: Number.MAX_SAFE_INTEGER, whole: true },
  { name: "presence_penalty", label: "Presence penalty", hint: "−2 to 2", least: -2, most: 2 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "−2 to 2", least: -2, most: 2 },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "1: none", least: 0, most: 100, above: true },
  {
    name: "beam_width",
    label: "Beams",
    hint: "2 or more: a search, without a temperature",
    least: 1,
    most: 64,
    whole: true,
  },
  { name: "n", label: "Answers", hint: "to one question", least: 1, most: 128, whole: true },
  {
    name: "best_of",
    label: "Best of",
    hint: "so many are drawn, the likeliest shown at the end",
    least: 1,
    most: 128,
    whole: true,
  },
  { name: "length_penalty", label: "Length penalty", hint: "of beams", least: -10, most: 10 },
];

/** What is wrong with each setting that is. */
export function problemsOf(settings: Settings): Record<string, string> {
  const bias = biasOf(settings.logit_bias ?? "");
  const more = typeof bias === "string" ? [["logit_bias", bias] as const] : [];
  return Object.fromEntries([
    ...more,
    ...SETTINGS.flatMap(({ name, least, most, whole, above }) => {
      const text = settings[name]?.trim() ?? "";
      if (text === "") return [];
      const value = Number(text);
      const range =
        most >= 1e6 ? `at least ${least}` : `${above ? `above ${least}, at most` : `from ${least} to`} ${most}`;
      const good =
        value >= least && value <= most && !(above && value === least) && (!whole || Number.isInteger(value));
      return good ? [] : [[name, `must be a ${whole ? "whole " : ""}number ${range}`] as const];
    }),
  ]);
}

/** The part of a body that the settings make. */
export function fieldsOf(settings: Settings, goOn: boolean, mode: Mode): Record<string, unknown> {
  const numbers = SETTINGS.flatMap(({ name }): [string, unknown][] => {
    const text = settings[name]?.trim() ?? "";
    const key = name === "max_tokens" && mode === "chat" ? "max_completion_tokens" : name;
    return text === "" ? [] : [[key, Number(text)]];
  });
  const stop = stopsOf(settings.stop ?? "");
  const bias = biasOf(settings.logit_bias ?? "");
  const biased = typeof bias === "object" && Object.keys(bias).length > 0;
  return {
    ...Object.fromEntries(numbers),
    ...(stop.length > 0 && { stop }),
    ...(biased && { logit_bias: bias }),
    ...(goOn && { ignore_eos: true }),
  };
}

/** Most tokens that may have one, as the server has it. */
const MOST_BIASED = 4096;
const MOST_BIAS = 100;

/** A line for each token: its id, and what is added to its logit. @returns what is wrong with them, as a text */
function biasOf(text: string): Record<string, number> | string {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  if (lines.length > MOST_BIASED) return `has more than ${MOST_BIASED} tokens`;
  const bias: Record<string, number> = {};
  for (const line of lines) {
    const parts = /^\s*(\d{1,10})\s*[:=\s]\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$/.exec(line);
    if (!parts || Math.abs(Number(parts[2])) > MOST_BIAS) {
      return `"${line.trim()}" must be a token's id and a number from −${MOST_BIAS} to ${MOST_BIAS}, such as 42: -5`;
    }
    bias[parts[1]!] = Number(parts[2]);
  }
  return bias;
}

/** A line is a text; `\n` and `\t` in it stand for what they do in programs. */
function stopsOf(text: string): string[] {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) =>
    line.replace(/\\([nt\\])/g, (_, char) => (char === "n" ? "\n" : char === "t" ? "\t" : "\\")),
  );
}
