/** @file Tokens that stand beside the vocabulary, found in a text by their spelling before it is cut. */
import { type Normalize, trimEnd } from "./normalizer.ts";
import type { AddedToken } from "./schema.ts";

/** A part of a text: plain, or an added token. */
export interface Section {
  readonly text: string;
  readonly id: number | undefined;
  /** It begins the whole input. */
  readonly first: boolean;
}

/** A tree of characters (UTF-16 units). */
interface Node {
  readonly next: Map<number, Node>;
  token: AddedToken | undefined;
}

const newNode = (): Node => ({ next: new Map(), token: undefined });

const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const WORD_AT_START = new RegExp(`^${WORD}`, "u");
const WORD_AT_END = new RegExp(`${WORD}$`, "u");

/** Finds the leftmost, longest spellings. */
class Finder {
  readonly #root = newNode();

  constructor(tokens: Iterable<readonly [string, AddedToken]>) {
    for (const [spelling, token] of tokens) {
      if (spelling === "") continue;
      let node = this.#root;
      for (let at = 0; at < spelling.length; at++) {
        const unit = spelling.charCodeAt(at);
        const next = node.next.get(unit) ?? newNode();
        node.next.set(unit, next);
        node = next;
      }
      node.token ??= token;
    }
  }

  /** The token that begins at `start`, and its end. */
  #at(text: string, start: number): { token: AddedToken; end: number } | undefined {
    let node: Node | undefined = this.#root;
    let found: { token: AddedToken; end: number } | undefined;
    for (let at = start; at < text.length; at++) {
      node = node.next.get(text.charCodeAt(at));
      if (!node) break;
      if (node.token) found = { token: node.token, end: at + 1 };
    }
    return found;
  }

  split(text: string, first: boolean): Section[] {
    if (this.#root.next.size === 0) return [{ text, id: undefined, first }];
    const sections: Section[] = [];
    let done = 0;
    for (let at = 0; at < text.length; ) {
      const found = this.#root.next.has(text.charCodeAt(at)) ? this.#at(text, at) : undefined;
      if (!found) {
        at++;
        continue;
      }
      const { token, end } = found;
      const span = standsAlone(token, text, at, end) ? spanOf(token, text, at, end, done) : undefined;
      at = end;
      if (!span) continue;
      if (span.begin > done)
        sections.push({ text: text.slice(done, span.begin), id: undefined, first: first && !done });
      sections.push({ text: text.slice(span.begin, span.end), id: token.id, first: first && span.begin === 0 });
      done = span.end;
    }
    if (done < text.length) sections.push({ text: text.slice(done), id: undefined, first: first && done === 0 });
    return sections;
  }
}

/** `single_word` tokens are none inside a word. */
function standsAlone(token: AddedToken, text: string, start: number, end: number): boolean {
  if (!token.single_word) return true;
  // Two units hold the character beside it, whatever plane it is of.
  return !WORD_AT_END.test(text.slice(Math.max(0, start - 2), start)) && !WORD_AT_START.test(text.slice(end, end + 2));
}

/** What the token takes: with `lstrip` and `rstrip` the whitespace beside it, where no token before has taken it. */
function spanOf(token: AddedToken, text: string, start: number, end: number, done: number) {
  let begin = start;
  let stop = end;
  if (token.lstrip) begin = Math.max(done, trimEnd(text.slice(done, start)).length + done);
  if (token.rstrip) while (stop < text.length && /\p{White_Space}/u.test(text[stop]!)) stop++;
  return { begin, end: stop };
}

/** Special tokens are looked for in the text as given unless they say otherwise, all others in the normalised one. */
export const isNormalized = (token: AddedToken): boolean => token.normalized ?? !token.special;

export class AddedTokens {
  readonly #asGiven: Finder;
  readonly #normalized: Finder;
  readonly #normalize: Normalize;

  constructor(tokens: readonly AddedToken[], normalize: Normalize) {
    this.#normalize = normalize;
    const normalized = tokens.filter(isNormalized);
    const asGiven = tokens.filter((token) => !isNormalized(token));
    this.#asGiven = new Finder(asGiven.map((token) => [token.content, token]));
    this.#normalized = new Finder(normalized.map((token) => [normalize(token.content), token]));
  }

  /** Added tokens, and between them normalised text. */
  split(text: string): Section[] {
    return this.#asGiven.split(text, true).flatMap((section) => {
      if (section.id !== undefined) return [section];
      return this.#normalized.split(this.#normalize(section.text), section.first);
    });
  }
}
