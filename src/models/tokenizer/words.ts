/** @file Where a text that no pre-tokenizer cuts may be cut all the same, without a token of it changing. */
import type { Merge } from "./bpe.ts";

/** Pieces up to this length are left as they are. */
const LONG = 32;

/**
 * Texts of SentencePiece-like tokenizers are one piece for BPE. Where no merge goes from the character before a ▁ to
 * it, the text falls into parts that do not touch each other, and those are short and often met again.
 */
export class Words {
  readonly #known: ReadonlyMap<string, number>;
  /** Characters (UTF-16 units) after which a merge may cross to a ▁. */
  readonly #crossing: ReadonlySet<string>;

  constructor(tokens: ReadonlyMap<string, number>, merges: readonly Merge[]) {
    const last = new Map<number, string>();
    const marked = new Set<number>();
    for (const [token, id] of tokens) {
      last.set(id, token.at(-1)!);
      if (token.startsWith("▁")) marked.add(id);
    }
    this.#known = tokens;
    this.#crossing = new Set(merges.flatMap(({ left, right }) => (marked.has(right) ? [last.get(left)!] : [])));
  }

  cut(text: string): string[] {
    if (text.length <= LONG) return [text];
    const parts: string[] = [];
    let done = 0;
    for (let at = text.indexOf("▁", 1); at >= 0; at = text.indexOf("▁", at + 1)) {
      const before = text[at - 1]!;
      // Unknown characters on both sides would be one unknown token.
      if (this.#crossing.has(before) || !this.#known.has(before)) continue;
      parts.push(text.slice(done, at));
      done = at;
    }
    parts.push(text.slice(done));
    return parts;
  }
}
