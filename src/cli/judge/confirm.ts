/** @file Says what judging will cost, and does not begin without a yes. */
import { once } from "node:events";
import { createInterface } from "node:readline/promises";
import { InputError } from "../../base/index.ts";
import type { JudgingCost, Prices } from "../../evaluation/index.ts";
import { grouped, note } from "../terminal.ts";
import type { JudgeFlags } from "./flags.ts";

const moneyText = (value: number): string => (value < 0.01 ? "less than 0.01" : value.toFixed(2));

/** Lines that say the cost. @param atMost of what is not known yet: answers counted as long as they may get */
export function costText(cost: JudgingCost, prices: Prices | undefined, atMost = false): string[] {
  const { judgments, known, calls, promptTokens, completionTokens, mostCompletionTokens, money, mostMoney } = cost;
  const about = atMost ? "at most about" : "about";
  const before = known > 0 ? `${grouped(judgments)} judgements, ${grouped(known)} of them known: ` : "";
  const lines = [`${before}${grouped(calls)} calls`];
  if (calls === 0) return lines;
  lines.push(
    `${about} ${grouped(promptTokens)} prompt tokens, about ${grouped(completionTokens)} completion tokens (no more than ${grouped(mostCompletionTokens)})`,
  );
  if (money !== null && mostMoney !== null && prices) {
    const per = `at ${prices.prompt} and ${prices.completion} for a million`;
    lines.push(`${about} ${moneyText(money)}, no more than ${moneyText(mostMoney)} (${per}; tokens are estimated)`);
  }
  return lines;
}

/**
 * Shows the cost, and asks where someone can answer.
 * @param kept what was done so far, for whoever does not go on
 * @returns whether to go on
 * @throws InputError FLAG_INVALID where nobody can be asked and `--yes` is missing; the signal's reason
 */
export async function confirmCost(
  who: string,
  lines: readonly string[],
  calls: number,
  { yes }: Pick<JudgeFlags, "yes">,
  kept: string,
  signal: AbortSignal,
): Promise<boolean> {
  note(`judge ${who}: ${lines.join("\n  ")}`);
  if (calls === 0 || yes) return true;
  if (!process.stdin.isTTY || !process.stderr.isTTY) {
    const problem = `is needed to ask the judge where nobody can be asked first (${lines.join(", ")}); ${kept}`;
    throw new InputError("FLAG_INVALID", "--yes", problem);
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const closed = once(terminal, "close").then(() => ""); // Ctrl-D on Node 20, or the terminal is gone
    terminal.on("SIGINT", () => process.emit("SIGINT")); // readline keeps Ctrl-C to itself
    const answer = await Promise.race([terminal.question("Go on? [y/N] ", { signal }), closed]);
    return /^y(es)?$/i.test(answer.trim());
  } catch (error) {
    signal.throwIfAborted();
    if ((error as Error).name === "AbortError") return false; // Ctrl-D, as newer Node tells it
    throw error;
  } finally {
    terminal.close();
  }
}
