/** @file What people read on a terminal. */
import { expect, test } from "vitest";
import { duration } from "./terminal.ts";

test.each([
  [0.04, "0.0 s"],
  [59.94, "59.9 s"],
  [59.96, "1 min 0 s"],
  [119.7, "2 min 0 s"],
  [192.4, "3 min 12 s"],
  [3599.6, "1 h 0 min"],
  [7499, "2 h 4 min"],
])("%d seconds are %s", (seconds, text) => {
  expect(duration(seconds)).toBe(text);
});
