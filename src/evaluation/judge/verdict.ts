/** @file What a judge's text says, read as FastChat reads it. */

/** The first `[[5]]`, else the first `[5]`; undefined where there is none (FastChat's -1), or no number can be so large. Not checked to be 1 to 10. */
export function ratingOf(text: string): number | undefined {
  const found = /\[\[(\d+\.?\d*)\]\]/.exec(text) ?? /\[(\d+\.?\d*)\]/.exec(text);
  const rating = Number(found?.[1]);
  return Number.isFinite(rating) ? rating : undefined;
}

/** `[[A]]` anywhere, else `[[B]]`, else `[[C]]`; undefined where there is none of them (FastChat's "error"). */
export function winnerOf(text: string): "A" | "B" | "tie" | undefined {
  if (text.includes("[[A]]")) return "A";
  if (text.includes("[[B]]")) return "B";
  return text.includes("[[C]]") ? "tie" : undefined;
}

export type Outcome = "win" | "loss" | "tie";

/**
 * Of two games with changed places, seen from the first model: a win or loss only where both agree, otherwise a tie;
 * undefined where a game has no verdict.
 * @param straight of the game in which it was A
 * @param swapped of the game in which it was B
 */
export function outcomeOf(
  straight: ReturnType<typeof winnerOf>,
  swapped: ReturnType<typeof winnerOf>,
): Outcome | undefined {
  if (straight === undefined || swapped === undefined) return undefined;
  if (straight === "A" && swapped === "B") return "win";
  return straight === "B" && swapped === "A" ? "loss" : "tie";
}
