/** @file SentencePiece's rules of characters: a double-array trie from UTF-8 to what takes the place of it. */

/**
 * A precompiled_charsmap: the size of the trie in bytes, its units, and the replacements, each ended by a zero byte.
 * Units are those of Darts-clone (Yata 2012).
 */
export class Charsmap {
  readonly #units: Uint32Array;
  readonly #texts: Uint8Array;

  private constructor(units: Uint32Array, texts: Uint8Array) {
    this.#units = units;
    this.#texts = texts;
  }

  /** Undefined when it is damaged. */
  static read(bytes: Uint8Array): Charsmap | undefined {
    if (bytes.length < 4) return undefined;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const size = view.getUint32(0, true);
    if (size === 0 || size % 4 || size + 4 > bytes.length) return undefined;
    const units = Uint32Array.from({ length: size / 4 }, (_, at) => view.getUint32(4 * at + 4, true));
    return new Charsmap(units, bytes.subarray(4 + size));
  }

  /** The longest rule for the bytes from `start` on: how many it takes, and what takes their place. */
  match(bytes: Uint8Array, start: number): { length: number; text: Uint8Array } | undefined {
    const offset = (unit: number) => (unit >>> 10) << ((unit & 0x200) >>> 6);
    let node = offset(this.#units[0] ?? 0);
    let found: { length: number; value: number } | undefined;
    for (let at = start; at < bytes.length; at++) {
      node ^= bytes[at]!;
      const unit = this.#units[node] ?? 0;
      if ((unit & 0x800000ff) >>> 0 !== bytes[at]) break;
      node ^= offset(unit);
      if (unit & 0x100) found = { length: at + 1 - start, value: (this.#units[node] ?? 0) & 0x7fffffff };
    }
    if (!found) return undefined;
    const end = this.#texts.indexOf(0, found.value);
    return { length: found.length, text: this.#texts.subarray(found.value, end < 0 ? undefined : end) };
  }
}
