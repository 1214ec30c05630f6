/** @file The tokens of a prompt as texts that, joined, are the prompt. */
import type { Tokenizer } from "../../../models/index.ts";
import type { ExploreToken } from "../types.ts";

/** What the tokenizer puts in front is named as it is called; the rest is the text as it stands. */
export function tokenTexts(tokenizer: Tokenizer, ids: readonly number[]): ExploreToken[] {
  const first = ids.findIndex((id) => !tokenizer.specialTokenIds.has(id));
  const front = first < 0 ? ids.length : first;
  const stream = tokenizer.decodeStream({ skipSpecialTokens: false });
  return ids.map((id, at): ExploreToken => {
    if (at < front) return { id, text: tokenizer.idToToken(id) ?? "" };
    const text = stream.push(id) + (at === ids.length - 1 ? stream.end() : "");
    if (text !== "") return { id, text };
    const bytes = Buffer.from(tokenizer.bytesOf(id)).toString("hex");
    return bytes === "" ? { id, text } : { id, text, bytes };
  });
}
