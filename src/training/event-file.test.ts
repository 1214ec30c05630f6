/** @file Event files: byte for byte what TensorBoard's own writer makes of the same records. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { crc32c, frame, scalarsEvent, startEvent, textEvent, versionEvent } from "./event-file.ts";

const fixtures = join(import.meta.dirname, "../../test/fixtures/tensorboard");

interface Entry {
  readonly wallTime: number;
  readonly step: number;
  readonly version?: string;
  readonly start?: boolean;
  readonly scalars?: readonly [string, number | string][];
  readonly text?: [string, string];
}

const entries = JSON.parse(readFileSync(join(fixtures, "events.json"), "utf8")) as Entry[];

/** The file cut into records by their lengths. */
function records(): Uint8Array[] {
  const file = readFileSync(join(fixtures, "events.out.tfevents.fixture"));
  const found: Uint8Array[] = [];
  for (let at = 0; at < file.length; ) {
    const end = at + Number(file.readBigUInt64LE(at)) + 16;
    found.push(Uint8Array.from(file.subarray(at, end)));
    at = end;
  }
  return found;
}

function written({ wallTime, step, version, start, scalars, text }: Entry): Uint8Array {
  if (version !== undefined) return versionEvent(wallTime);
  if (start) return startEvent(wallTime, step);
  if (text) return textEvent(wallTime, step, ...text);
  return scalarsEvent(wallTime, step, new Map(scalars!.map(([tag, value]) => [tag, Number(value)])));
}

test("every record is that of TensorBoard's writer", () => {
  const wanted = records();
  expect(wanted.length).toBe(entries.length);
  for (const [i, entry] of entries.entries()) {
    expect([i, Buffer.from(frame(written(entry))).toString("hex")]).toEqual([
      i,
      Buffer.from(wanted[i]!).toString("hex"),
    ]);
  }
});

test("CRC-32C gives the values of RFC 3720, B.4", () => {
  expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
  expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
  expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e);
});
