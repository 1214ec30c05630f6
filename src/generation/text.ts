/** @file From tokens to text as it is streamed: whole characters only, and never a part of a stop string. */
import type { TokenStream } from "../models/index.ts";

/**
 * Text of one sequence. Text that may still turn out to be the beginning of a stop string is held back; the stop
 * string itself and what follows it is never given out.
 */
export class TextStream {
  readonly #decoder: TokenStream | undefined;
  readonly #stops: readonly string[];
  #given = "";
  #held = "";
  #stopped = false;

  /** @param decoder without one all text is empty */
  constructor(decoder: TokenStream | undefined, stops: readonly string[] = []) {
    this.#decoder = decoder;
    this.#stops = stops;
  }

  /** All text given out so far. */
  get text(): string {
    return this.#given;
  }

  /** A stop string was met. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Takes the next token and returns the text that can be shown now. */
  push(token: number): string {
    return this.#decoder ? this.#take(this.#decoder.push(token)) : "";
  }

  /** Ends the sequence and returns the rest of its text. */
  end(): string {
    const last = this.#decoder ? this.#take(this.#decoder.end()) : "";
    const rest = this.#held;
    this.#held = "";
    this.#given += rest;
    return last + rest;
  }

  #take(piece: string): string {
    if (this.#stopped) return "";
    const text = this.#held + piece;
    let cut = -1;
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      if (at >= 0 && (cut < 0 || at < cut)) cut = at;
    }
    if (cut >= 0) {
      this.#stopped = true;
      this.#held = "";
    } else {
      cut = text.length - this.#openLength(text);
      this.#held = text.slice(cut);
    }
    const shown = text.slice(0, cut);
    this.#given += shown;
    return shown;
  }

  /** Length of the longest end of `text` with which a stop string begins. */
  #openLength(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--) {
        if (text.endsWith(stop.slice(0, n))) {
          longest = n;
          break;
        }
      }
    }
    return longest;
  }
}
