/** @file Streamed text: stop strings across token borders, and nothing of them ever shown. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { TextStream } from "./text.ts";

/** Tokens are indices into `pieces`. */
function stream(pieces: readonly string[], stops: readonly string[]) {
  const text = new TextStream({ push: (id) => pieces[id]!, end: () => "" }, stops);
  const shown: string[] = [];
  for (let id = 0; id < pieces.length && !text.stopped; id++) shown.push(text.push(id));
  shown.push(text.end());
  return { text, shown };
}

test("text before a stop string is shown, the string and what follows are not", () => {
  const { text, shown } = stream(["The ", "end", "\n", "\nUs", "er:", " hi"], ["\n\nUser:"]);
  expect(text.stopped).toBe(true);
  expect(text.text).toBe("The end");
  expect(shown).toEqual(["The ", "end", "", "", "", ""]);
});

test("what only looked like a stop string is shown later", () => {
  const { text, shown } = stream(["a\n", "b\n", "\nc"], ["\n\nUser:"]);
  expect(text.stopped).toBe(false);
  expect(shown).toEqual(["a", "\nb", "\n\nc", ""]);
});

test("held back text comes out at the end", () => {
  const { text, shown } = stream(["yes\n\nUs"], ["\n\nUser:"]);
  expect(shown).toEqual(["yes", "\n\nUs"]);
  expect(text.text).toBe("yes\n\nUs");
});

test("the earliest of several stop strings counts", () => {
  expect(stream(["one two three"], ["three", "two"]).text.text).toBe("one ");
});

test("for any pieces and stop strings: shown text is the text up to the first stop string", () => {
  const piece = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 4 });
  const stop = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 8 }), fc.array(stop, { maxLength: 3 }), (pieces, stops) => {
      const { text, shown } = stream(pieces, stops);
      // The first stop string to be complete decides; a longer one that began earlier may still be open then.
      let seen = "";
      let expected: string | undefined;
      for (const next of pieces) {
        seen += next;
        const cuts = stops.map((s) => seen.indexOf(s)).filter((at) => at >= 0);
        if (cuts.length > 0) {
          expected = seen.slice(0, Math.min(...cuts));
          break;
        }
      }
      expect(text.text).toBe(expected ?? seen);
      expect(shown.join("")).toBe(text.text);
    }),
  );
});
