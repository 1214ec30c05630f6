/** @file Small plots of functions for a terminal, two by four dots a character (Braille). */

export interface PlotOptions {
  readonly from: number;
  readonly to: number;
  readonly low: number;
  readonly high: number;
  /** In characters. */
  readonly width: number;
  readonly height: number;
}

/** Bit of the dot at (x, y) in a Braille character, y downwards (Unicode 15, block Braille Patterns). */
const DOTS = [
  [0x01, 0x08],
  [0x02, 0x10],
  [0x04, 0x20],
  [0x40, 0x80],
] as const;

/** The graph of `f` as `height` lines of `width` characters; values outside [low, high] are not drawn. */
export function plot(f: (x: number) => number, options: PlotOptions): string[] {
  const { from, to, low, high, width, height } = options;
  const [columns, rows] = [2 * width, 4 * height];
  const cells = Array.from({ length: height }, () => new Uint8Array(width));
  const rowOf = (value: number) => Math.round(((high - value) / (high - low)) * (rows - 1));
  let previous: number | undefined;
  for (let column = 0; column < columns; column++) {
    const row = rowOf(f(from + ((to - from) * column) / (columns - 1)));
    // Steep parts are filled so that the line has no gaps.
    const start = previous === undefined || !Number.isFinite(row) ? row : previous + Math.sign(row - previous);
    for (const y of between(start, row)) {
      if (y >= 0 && y < rows) cells[y >> 2]![column >> 1]! |= DOTS[y & 3]![column & 1]!;
    }
    previous = Number.isFinite(row) ? row : undefined;
  }
  return cells.map((line) => String.fromCodePoint(...Array.from(line, (dots) => 0x2800 + dots)));
}

function* between(a: number, b: number): Generator<number> {
  if (!Number.isFinite(a) || !Number.isFinite(b) || Math.abs(a - b) > 10_000) return;
  const step = Math.sign(b - a);
  for (let y = a; y !== b; y += step) yield y;
  yield b;
}
