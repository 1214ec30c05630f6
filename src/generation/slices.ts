/** @file How a pass over prompts is cut into slices, between which others get their turn. */

/** From … to, the end not included. */
export interface Span {
  readonly from: number;
  readonly to: number;
}

/** Some tokens through all layers, or all tokens through some layers. */
export interface Slice {
  readonly tokens: Span;
  readonly layers?: Span;
}

export interface PassSize {
  readonly rows: number;
  /** Tokens of each row, of which those before `from` are in the cache. */
  readonly tokens: Span;
  readonly layers: number;
  /** Whether tokens may be read without those after them; of one row only. */
  readonly divisible: boolean;
}

/**
 * Cuts a pass into slices of about as much work as `sliceTokens` tokens through all layers. Where every layer needs all
 * tokens before any of the next begins, a slice is some layers, at least one.
 */
export function planSlices({ rows, tokens, layers, divisible }: PassSize, sliceTokens: number): Slice[] {
  const count = rows * (tokens.to - tokens.from);
  if (count <= sliceTokens) return [{ tokens }];
  if (divisible) return cut(tokens, Math.ceil(count / sliceTokens)).map((span) => ({ tokens: span }));
  const slices = Math.min(layers, Math.ceil(count / sliceTokens));
  return cut({ from: 0, to: layers }, slices).map((span) => ({ tokens, layers: span }));
}

/** Parts of a span that differ in length by one at most. */
function cut({ from, to }: Span, parts: number): Span[] {
  const at = (part: number): number => from + Math.round(((to - from) * part) / parts);
  return Array.from({ length: parts }, (_, part) => ({ from: at(part), to: at(part + 1) }));
}
