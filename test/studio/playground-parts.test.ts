/** @file Parts of the playground without a browser: streams however they are cut, commands whatever is in them. */
import { execFileSync } from "node:child_process";
import fc from "fast-check";
import { expect, test } from "vitest";
import { asCurl, requestOf } from "../../studio/src/pages/playground/request.ts";
import { fieldsOf, problemsOf } from "../../studio/src/pages/playground/settings.ts";
import { type Answer, firstState, type Turn } from "../../studio/src/pages/playground/state.ts";
import { eventsOf } from "../../studio/src/pages/playground/stream.ts";

/** A response whose body comes in pieces of these lengths, again and again. */
function cut(text: string, lengths: readonly number[]): Response {
  const bytes = new TextEncoder().encode(text);
  return new Response(
    new ReadableStream({
      start(controller) {
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const length = lengths[i % lengths.length]!;
          controller.enqueue(bytes.slice(at, at + length));
          at += length;
        }
        controller.close();
      },
    }),
  );
}

async function read(response: Response): Promise<object[]> {
  const events: object[] = [];
  for await (const event of eventsOf(response)) events.push(event);
  return events;
}

const line = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;

test("a stream is read whole wherever it is cut, within a character too", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ text: fc.string({ unit: "grapheme" }) }), { maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
      async (events, lengths) => {
        const text = `${events.map(line).join("")}data: [DONE]\n\n`;
        expect(await read(cut(text, lengths))).toEqual(events);
      },
    ),
  );
});

test("an error in a stream, and one that breaks off, are errors", async () => {
  const error = { message: "shutting down", code: "DRAINING", type: "server_error", param: null };
  await expect(read(cut(line({ choices: [] }) + line({ error }), [7]))).rejects.toMatchObject({
    ...{ code: "DRAINING", message: "shutting down" },
  });
  await expect(read(cut(line({ choices: [] }), [7]))).rejects.toMatchObject({ code: "STREAM_BROKEN" });
});

test("a shell reads out of a command what was put in, quotes and dollars too", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (prompt) => {
      const body = { prompt: prompt.replaceAll("\0", "") };
      const command = asCurl({ path: "/v1/completions", body }, "http://h:1", true);
      const script = `curl() { for last; do :; done; printf %s "$last"; }\n${command}`;
      expect(JSON.parse(execFileSync("bash", ["-c", script], { encoding: "utf8" }))).toEqual(body);
    }),
    { numRuns: 30 },
  );
});

test("a conversation leaves out questions that a column never answered", () => {
  const answer = (text: string) => ({ text }) as Answer;
  const turns: Turn[] = [
    { id: "1", mode: "chat", prompt: "a", answers: { x: answer("A"), y: answer("") } },
    { id: "2", mode: "chat", prompt: "b", answers: { x: answer("B") } },
    { id: "3", mode: "chat", prompt: "c", answers: {} },
  ];
  const state = { ...firstState("chat"), settings: {}, system: " ", turns };
  const contents = (column: string) =>
    (requestOf(state, column, "m", turns[2]!).body.messages as { content: string }[]).map(({ content }) => content);
  expect(contents("x")).toEqual(["a", "A", "b", "B", "c"]);
  expect(contents("y")).toEqual(["c"]);
});

test("settings are checked as the server checks them, and left out where they are empty", () => {
  const settings = {
    max_tokens: "0",
    temperature: "x",
    top_p: "0",
    top_k: "1.5",
    min_p: "1",
    seed: " 7 ",
    stop: "a\\n\n\nb",
  };
  expect(Object.keys(problemsOf(settings))).toEqual(["max_tokens", "temperature", "top_p", "top_k"]);
  expect(problemsOf({ n: "0", best_of: "129" })).toEqual({ n: expect.any(String), best_of: expect.any(String) });
  expect(problemsOf({ logit_bias: "5: 1\n\n x: 1" })).toEqual({ logit_bias: expect.stringMatching(/^"x: 1" must be/) });
  for (const wrong of ["5", "5: 101", "-5: 1", "5: 1e1", "12345678901: 1"]) {
    expect(Object.keys(problemsOf({ logit_bias: wrong }))).toEqual(["logit_bias"]);
  }
  expect(fieldsOf({ logit_bias: " 5: -100\n7 = .5\n9 +2", n: "2", best_of: "4" }, false, "completion")).toEqual({
    ...{ n: 2, best_of: 4, logit_bias: { 5: -100, 7: 0.5, 9: 2 } },
  });
  expect(problemsOf({ temperature: "", top_p: "1e-3" })).toEqual({});
  expect(fieldsOf({ seed: " 7 ", max_tokens: "5", top_k: "", stop: "a\\n\n\nb" }, true, "chat")).toEqual({
    ...{ seed: 7, max_completion_tokens: 5, stop: ["a\n", "b"], ignore_eos: true },
  });
});
