/** @file Damages files as untrusted ones may be damaged, and holds what reads them to typed errors, bounded memory and a clean Object.prototype. */
import { appendFileSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { getHeapStatistics } from "node:v8";
import fc from "fast-check";
import { afterAll, beforeAll, expect } from "vitest";
import { MiloraError } from "../../src/base/index.ts";
import { quickDisk } from "./disk.ts";

/** Cases of each target, and seconds for them: `npm run fuzz` looks longer, with seeds of its own. */
export const GIVEN = Number(process.env.MILORA_FUZZ_RUNS);
const SECONDS = Number(process.env.MILORA_FUZZ_SECONDS);
/** Where what was run is told, a line a target. */
const REPORT = process.env.MILORA_FUZZ_REPORT;

export const settings = (runs: number): fc.Parameters<unknown> => {
  if (!(GIVEN > 0)) return { numRuns: runs, seed: 20240607 };
  return { numRuns: GIVEN, ...(SECONDS > 0 && { interruptAfterTimeLimit: SECONDS * 1000 }) };
};

/** Milliseconds for all cases of one target. */
export const TIMEOUT = GIVEN > 0 ? 24 * 60 * 60 * 1000 : 60_000;

/** A directory for one test file. */
export function scratch(): { readonly path: string } {
  const holder = { path: "" };
  beforeAll(() => {
    holder.path = mkdtempSync(join(quickDisk(), "fuzz-"));
  });
  afterAll(() => rmSync(holder.path, { recursive: true, force: true }));
  return holder;
}

/** Bytes of array buffers and of what native code has told of; asking the whole process would take a tenth of the time. */
const outside = (): number => getHeapStatistics().external_memory;
/** Far more than the fixtures need, far less than what damaged counts and sizes claim. */
const MEMORY = 256 * 1024 * 1024;

/** As `expect`, which takes longer than most of what is read here. */
export function hold(holds: boolean, what: string): void {
  if (!holds) throw new Error(`does not hold: ${what}`);
}

/** How often something was read and how often refused: a target where only one happens tests little. */
export class Tally {
  accepted = 0;
  readonly refused = new Map<string, number>();
  #slowest = 0;
  readonly #begun = performance.now();

  /** Reads a damaged file: a MiloraError is right, and so is a sound result, which `read` itself checks. */
  async check(read: () => unknown): Promise<void> {
    const before = outside();
    const started = performance.now();
    try {
      await read();
      this.accepted++;
    } catch (error) {
      if (!(error instanceof MiloraError)) throw error;
      const { length } = error.message;
      hold(length > 0 && length < 200_000, `a message of ${length} characters`);
      this.refused.set(error.code, (this.refused.get(error.code) ?? 0) + 1);
    }
    this.#slowest = Math.max(this.#slowest, performance.now() - started);
    const more = outside() - before;
    hold(more < MEMORY, `${more} bytes more`);
    for (const key in Object.prototype) hold(false, `Object.prototype has ${key}`);
    hold(({} as Record<string, unknown>).polluted === undefined, "Object.prototype is as it was");
  }

  /** Both ends were seen often enough to mean something. */
  conclude(): void {
    const refused = [...this.refused.values()].reduce((a, b) => a + b, 0);
    const line = {
      target: expect.getState().currentTestName,
      accepted: this.accepted,
      refused: Object.fromEntries(this.refused),
      slowestMs: this.#slowest,
      seconds: (performance.now() - this.#begun) / 1000,
    };
    if (REPORT) appendFileSync(REPORT, `${JSON.stringify(line)}\n`);
    expect(this.accepted).toBeGreaterThan(0);
    expect(refused).toBeGreaterThan(this.accepted / 20);
  }
}

const INTEGERS = [
  ...[0n, 1n, 2n, 7n, 8n, 31n, 32n, 255n, 65535n, 2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 33n],
  ...[2n ** 53n - 1n, 2n ** 53n, 2n ** 62n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 32n],
];

export type ByteDamage =
  | { readonly kind: "cut" | "drop" | "repeat"; readonly at: number; readonly length: number }
  | { readonly kind: "flip"; readonly at: number; readonly bit: number }
  | { readonly kind: "integer"; readonly at: number; readonly value: bigint; readonly width: 4 | 8 }
  | { readonly kind: "insert"; readonly at: number; readonly bytes: Uint8Array };

/** Places are fractions of the part that is damaged most: the beginning, where headers are. */
const place = fc.double({ min: 0, max: 1, noNaN: true }).map((x) => x ** 3);
const few = fc.oneof(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 1, max: 4096 }));

export const byteDamage: fc.Arbitrary<ByteDamage> = fc.oneof(
  fc.record({ kind: fc.constantFrom("cut", "drop", "repeat"), at: place, length: few }),
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("flip"), at: place, bit: fc.integer({ min: 0, max: 7 }) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("integer"),
      at: place,
      value: fc.constantFrom(...INTEGERS),
      width: fc.constantFrom(4, 8),
    }),
  },
  fc.record({ kind: fc.constant("insert"), at: place, bytes: fc.uint8Array({ minLength: 1, maxLength: 24 }) }),
);

export function damageBytes(source: Uint8Array, damages: readonly ByteDamage[]): Buffer {
  let bytes = Buffer.from(source);
  for (const damage of damages) {
    const at = Math.floor(damage.at * bytes.length);
    const [head, tail] = [bytes.subarray(0, at), bytes.subarray(at)];
    if (damage.kind === "cut") bytes = Buffer.from(head);
    else if (damage.kind === "drop") bytes = Buffer.concat([head, tail.subarray(damage.length)]);
    else if (damage.kind === "repeat") bytes = Buffer.concat([head, tail.subarray(0, damage.length), tail]);
    else if (damage.kind === "insert") bytes = Buffer.concat([head, damage.bytes, tail]);
    else if (damage.kind === "flip") {
      if (at < bytes.length) bytes[at]! ^= 1 << damage.bit;
    } else if (damage.kind === "integer" && at + damage.width <= bytes.length) {
      if (damage.width === 8) bytes.writeBigUInt64LE(BigInt.asUintN(64, damage.value), at);
      else bytes.writeUInt32LE(Number(BigInt.asUintN(32, damage.value)), at);
    }
  }
  return bytes;
}

/** JSON text that takes a value's place. `JSON.stringify` could not write all of it. */
const VALUES = [
  ...["null", "true", "false", "0", "-0", "1", "-1", "2", "0.5", "-1e-9", "1e308", "-1e308", "1e999", "2147483648"],
  ...["4294967296", "9007199254740993", "1e20", '""', '"x"', '"NaN"', '"F32"', '"I64"', '"\\u0000"', '"\\ud800"'],
  ...['"../../etc/passwd"', '"(a+)+$"', '"["', "[]", "{}", "[0]", "[[]]", "[1, 2, 3, 4]", "[-1, 1e15]", '[""]'],
  ...['{"__proto__": {"polluted": 1}}', '{"constructor": {"prototype": {"polluted": 1}}}', '{"type": "Sequence"}'],
  ...['{"toString": 1, "length": -1, "hasOwnProperty": null}', '"__proto__"', '"constructor"'],
];
/** By name, so that a failing case can be read. */
const LONG: Readonly<Record<string, string>> = {
  "arrays in arrays": `${"[".repeat(150)}${"]".repeat(150)}`,
  "objects in objects": `${'{"a":'.repeat(10_000)}1${"}".repeat(10_000)}`,
  "a long text": `"${"long ".repeat(20_000)}"`,
  "a long list": `[${"0,".repeat(50_000)}0]`,
};
const textOf = (value: string): string => LONG[value] ?? value;
const KEYS = ["__proto__", "constructor", "prototype", "toString", "", "x", "__metadata__", "hasOwnProperty"];

export type JsonDamage =
  | { readonly kind: "value"; readonly at: number; readonly value: string }
  | { readonly kind: "remove" | "repeat"; readonly at: number }
  | { readonly kind: "key"; readonly at: number; readonly key: string; readonly value: string }
  | { readonly kind: "text"; readonly at: number; readonly text: string };

const at = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
const value = fc.constantFrom(...VALUES, ...Object.keys(LONG));

export const jsonDamage: fc.Arbitrary<JsonDamage> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("value"), at, value }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom("remove", "repeat"), at }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("key"), at, key: fc.constantFrom(...KEYS), value }) },
  fc.record({
    kind: fc.constant("text"),
    at,
    text: fc.constantFrom("{", "}", "[", "]", '"', ",", "\\", "\u0000", "//", "é"),
  }),
);

/** A JSON text in pieces: what is inside of each value that may be damaged, from which to which character. */
interface Span {
  readonly begin: number;
  readonly end: number;
  /** Where the member begins: at its key, where it has one. */
  readonly member: number;
  readonly object: boolean;
}

/** The spans of the text that was damaged last: most targets damage the same one each time. */
let last: { readonly text: string; readonly spans: readonly Span[] } | undefined;

function spansOf(text: string): readonly Span[] {
  if (last?.text !== text) last = { text, spans: findSpans(text) };
  return last.spans;
}

/** All values in a valid JSON text. */
function findSpans(text: string): Span[] {
  const spans: Span[] = [];
  let i = 0;
  const blank = () => {
    while (/\s/.test(text[i] ?? "")) i++;
  };
  const string = () => {
    for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
    i++;
  };
  const visit = (member: number): void => {
    const begin = i;
    const open = text[i];
    if (open === "{" || open === "[") {
      i++;
      blank();
      while (text[i] !== "}" && text[i] !== "]") {
        const start = i;
        if (open === "{") {
          string();
          blank();
          i++;
          blank();
        }
        visit(start);
        blank();
        if (text[i] === ",") i++;
        blank();
      }
      i++;
    } else if (open === '"') string();
    else while (i < text.length && !/[,\]}\s]/.test(text[i]!)) i++;
    spans.push({ begin, end: i, member, object: open === "{" });
  };
  blank();
  visit(i);
  return spans;
}

/** Damages from back to front, so that places stay what they were; those inside of others are left out. */
export function damageJson(source: string, damages: readonly JsonDamage[]): string {
  const spans = spansOf(source);
  // Half of the damage goes to the values near the root: a vocabulary has thousands of leaves, all alike.
  const near = spans.filter(({ end, begin }) => end - begin > 60 || spans.length < 200).slice(-40);
  let text = source;
  let limit = Number.POSITIVE_INFINITY;
  const chosen = damages.map((damage) => {
    const from = Math.floor(damage.at * 1000) % 2 === 0 && near.length > 0 ? near : spans;
    return { damage, span: from[Math.floor(damage.at * from.length)]! };
  });
  for (const { damage, span } of chosen.sort((a, b) => b.span.begin - a.span.begin)) {
    if (span.end > limit) continue;
    limit = span.member;
    const [head, inner, tail] = [text.slice(0, span.begin), text.slice(span.begin, span.end), text.slice(span.end)];
    if (damage.kind === "value") text = head + textOf(damage.value) + tail;
    else if (damage.kind === "text") text = head + damage.text + inner + tail;
    else if (damage.kind === "remove") {
      text = text.slice(0, span.member) + tail.replace(/^\s*,/, "");
      text = text.replace(/,(\s*[}\]])/g, "$1");
    } else if (damage.kind === "repeat")
      text = `${text.slice(0, span.end)},${text.slice(span.member, span.end)}${tail}`;
    else if (damage.kind === "key" && span.object) {
      const comma = /^\{\s*\}$/.test(inner) ? "" : ",";
      text = `${head}{${JSON.stringify(damage.key)}:${textOf(damage.value)}${comma}${inner.slice(1)}${tail}`;
    }
  }
  return text;
}
