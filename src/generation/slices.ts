/** @file How a pass over prompts is cut into slices, between which others get their turn. */

/** From … to, the end not included. */
export interface Span {
  readonly from: number;
  readonly to: number;
}

/** Some tokens through some layers; through all of them in one run where there are none. */
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
 * Cuts a pass into slices of about as much work as `sliceTokens` tokens through all layers. A slice is some layers:
 * products of many tokens are the quicker ones, and a routed layer needs the whole prompt. Only where that would be less
 * than a layer, and it may be done, are the tokens cut too.
 */
export function planSlices({ rows, tokens, layers, divisible }: PassSize, sliceTokens: number): Slice[] {
  const size = (span: Span): number => rows * (span.to - span.from);
  if (size(tokens) <= sliceTokens) return [{ tokens }];
  const spans = divisible ? cut(tokens, Math.ceil(size(tokens) / (sliceTokens * layers))) : [tokens];
  return spans.flatMap((span) => {
    const slices = Math.min(layers, Math.ceil(size(span) / sliceTokens));
    return cut({ from: 0, to: layers }, slices).map((part) => ({ tokens: span, layers: part }));
  });
}

/** Parts of a span that differ in length by one at most. */
function cut({ from, to }: Span, parts: number): Span[] {
  const at = (part: number): number => from + Math.round(((to - from) * part) / parts);
  return Array.from({ length: parts }, (_, part) => ({ from: at(part), to: at(part + 1) }));
}
