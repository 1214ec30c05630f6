/** @file Small helpers for messages: the nearest known word, and lists that stay short. */

/** Edits (insert, delete, replace, swap neighbours) between two words. */
function distance(a: string, b: string): number {
  const rows = Array.from({ length: a.length + 1 }, (_, i) => {
    const row = new Array<number>(b.length + 1).fill(0);
    row[0] = i;
    return row;
  });
  for (let j = 0; j <= b.length; j++) rows[0]![j] = j;
  for (let i = 1; i <= a.length; i++) {
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let best = Math.min(rows[i - 1]![j]! + 1, rows[i]![j - 1]! + 1, rows[i - 1]![j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, rows[i - 2]![j - 2]! + 1);
      rows[i]![j] = best;
    }
  }
  return rows[a.length]![b.length]!;
}

/** The known word that `word` was probably meant to be, if any is near (half of its letters at most differ). */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const plain = (text: string): string => text.toLowerCase().replaceAll(/[_\-. ]/g, "");
  let best: string | undefined;
  let bestScore = Number.POSITIVE_INFINITY;
  for (const candidate of known) {
    const a = plain(word);
    const b = plain(candidate);
    // "learning_rate" for "lr" has no small edit distance; a shared beginning counts as near, too.
    const score = b.startsWith(a) || a.startsWith(b) ? 1 : distance(a, b);
    if (score < bestScore && score <= Math.max(1, Math.floor(Math.max(a.length, b.length) / 2))) {
      best = candidate;
      bestScore = score;
    }
  }
  return best;
}

/** `["a", …]` cut to its first `limit` entries, with the number of the others. */
export function shorten(lines: readonly string[], limit = 20): string[] {
  if (lines.length <= limit) return [...lines];
  return [...lines.slice(0, limit), `and ${lines.length - limit} more`];
}
