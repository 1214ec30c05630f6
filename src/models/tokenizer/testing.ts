/** @file What the tests of tokenizers share with the scripts that made their fixtures: drawn texts, and digests. */

/** Xorshift of 32 bits, as in the script. */
export function draw(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % limit;
  };
}

/** FNV-1a, folded to 16 bits. */
export function digest(numbers: Iterable<number>): string {
  let hash = 0x811c9dc5;
  for (const number of numbers) hash = Math.imul(hash ^ number, 0x01000193);
  return ((hash ^ (hash >>> 16)) & 0xffff).toString(16).padStart(4, "0");
}

/** The digests of `items` beside those expected; only what differs is left, with what it came from. */
export function differences<T>(items: readonly T[], expected: string, digestOf: (item: T) => string): string[] {
  return items.flatMap((item, at) =>
    digestOf(item) === expected.slice(4 * at, 4 * at + 4) ? [] : [`${at}: ${JSON.stringify(item)}`],
  );
}

/** Strings of characters of one script, and of `parts`. */
export function drawStrings(
  count: number,
  runs: readonly (readonly [number, number])[],
  parts: readonly string[],
): string[] {
  const below = draw(20240607);
  return Array.from({ length: count }, () => {
    const [low, high] = runs[below(runs.length)]!;
    const length = 1 + below(12);
    return Array.from({ length }, () =>
      below(3) === 0 ? parts[below(parts.length)]! : String.fromCodePoint(low + below(high - low + 1)),
    ).join("");
  });
}
