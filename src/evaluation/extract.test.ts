/** @file Tests of reading answers out of generated text. */
import { describe, expect, test } from "vitest";
import { chooseExtraction, type Extraction, extractAnswer, isCorrect } from "./extract.ts";

describe("chooseExtraction", () => {
  const rows = (...answers: string[]) => answers.map((answer) => ({ instruction: "q", answer }));

  test("takes the labels that the prompts list", () => {
    const instruction = "Who wrote this?\n\nAnswer format: austen/doyle/wells";
    expect(chooseExtraction([{ instruction, answer: "doyle" }])).toEqual({
      kind: "labels",
      labels: ["austen", "doyle", "wells"],
    });
  });

  test("takes the kind that all answers share", () => {
    expect(chooseExtraction(rows("A", "E", "C"))).toEqual({ kind: "letter" });
    expect(chooseExtraction(rows("12", "-3.5", "1,000"))).toEqual({ kind: "number" });
    expect(chooseExtraction(rows("true", "false", "true"))).toEqual({ kind: "labels", labels: ["true", "false"] });
    expect(chooseExtraction(Array.from({ length: 100 }, (_, i) => ({ instruction: "", answer: `word ${i}` })))).toEqual(
      {
        kind: "text",
      },
    );
  });
});

describe("extractAnswer", () => {
  const labels = (...list: string[]): Extraction => ({ kind: "labels", labels: list });

  test("finds the first label as a whole word, in any case", () => {
    expect(extractAnswer("the correct answer is Physics, not chemistry", labels("chemistry", "physics"))).toBe(
      "physics",
    );
    expect(extractAnswer("astrophysics", labels("physics"))).toBeUndefined();
    expect(extractAnswer("answer12 answer1", labels("answer1", "answer2"))).toBe("answer1");
    expect(extractAnswer("new york is big", labels("new", "new york"))).toBe("new york");
    expect(extractAnswer("c++ it is", labels("c", "c++"))).toBe("c++");
  });

  test("finds the last number", () => {
    expect(extractAnswer("3 apples and 4 pears make 1,007 fruits.", { kind: "number" })).toBe("1007");
    expect(extractAnswer("none", { kind: "number" })).toBeUndefined();
  });

  test("finds the letter after the last 'answer is', never one out of a word", () => {
    expect(extractAnswer("A car goes. The answer is (B). Answer is: D", { kind: "letter" })).toBe("D");
    expect(extractAnswer("Because Every option fails but C", { kind: "letter" })).toBe("C");
    expect(extractAnswer("Because Every Dog", { kind: "letter" })).toBeUndefined();
  });
});

test("isCorrect compares what is meant, not how it is written", () => {
  expect(isCorrect("1007.0", "1,007", { kind: "number" })).toBe(true);
  expect(isCorrect("1008", "1,007", { kind: "number" })).toBe(false);
  expect(isCorrect(" Jane  Austen.", "jane austen", { kind: "text" })).toBe(true);
  expect(isCorrect(undefined, "", { kind: "text" })).toBe(false);
});
