/** @file The lines of a file from one place to another, in pieces and with turns for others, so that its length does not matter. */
import type { FileHandle } from "node:fs/promises";
import { setImmediate as turn } from "node:timers/promises";

const PIECE_BYTES = 1 << 20;
/** A line that is longer is of no run. */
const MOST_LINE_BYTES = 4 << 20;
/** How long others wait for their turn. */
const SLICE_MS = 4;

export interface LineReader {
  /** A whole line, without its end, and where it begins. */
  line(text: string, offset: number): void;
  /** There is one that is too long to be read. */
  tooLong?(): void;
  /** Everything before this place has been read. */
  done?(offset: number): void;
}

export interface LineRange {
  readonly from: number;
  /** Lines that begin here or later are not read; one that begins before is, to its end. */
  readonly to: number;
  /** `from` lies within a line that was too long. */
  readonly within?: boolean;
}

/** Reads whole lines; a last one without its end is left alone. Tells whether the end is within a line that is too long. */
export async function readLines(
  file: FileHandle,
  { from, to, within = false }: LineRange,
  reader: LineReader,
  signal: AbortSignal,
): Promise<boolean> {
  let buffer = Buffer.allocUnsafe(Math.min(PIECE_BYTES, Math.max(4096, to - from)));
  let offset = from;
  let skipping = within;
  while (offset < to) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, offset);
    signal.throwIfAborted();
    let since = performance.now();
    const piece = buffer.subarray(0, bytesRead);
    let start = 0;
    for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, start)) {
      if (offset + start >= to) return false;
      if (!skipping) reader.line(piece.toString("utf8", start, end), offset + start);
      skipping = false;
      start = end + 1;
      reader.done?.(offset + start);
      if (performance.now() - since < SLICE_MS) continue;
      await turn();
      signal.throwIfAborted();
      since = performance.now();
    }
    offset += start;
    if (start > 0) continue;
    if (!skipping && bytesRead < buffer.length) break; // the end, perhaps in the middle of a line
    if (bytesRead === 0) break;
    if (!skipping && buffer.length < MOST_LINE_BYTES) {
      buffer = Buffer.allocUnsafe(2 * buffer.length);
      continue;
    }
    if (!skipping) reader.tooLong?.();
    skipping = true;
    offset += bytesRead;
    reader.done?.(offset);
  }
  return skipping;
}
