/** @file Tests of the drawing of routes. */
import { expect, test } from "vitest";
import { drawRoutes } from "./routes.ts";

const experts = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

test("draws prompts side by side, layers down, experts across, in plain characters without colours", () => {
  process.env.NO_COLOR = "1";
  const routes = [
    [
      ["q_proj", "up_proj"],
      ["v_proj", "down_proj"],
    ],
    [
      ["k_proj", "o_proj"],
      ["gate_proj", "q_proj"],
    ],
  ];
  expect(drawRoutes(["A: physics", "B: a longer title"], routes, experts)).toBe(
    [
      "       A: physics         B: a longer title",
      "layer  q k v o g u d      q k v o g u d",
      "    0  # . . . . # .      . # . # . . .",
      "    1  . . # . . . #      # . . . # . .",
    ].join("\n"),
  );
});

test("colours do not change what is where", () => {
  delete process.env.NO_COLOR;
  process.env.FORCE_COLOR = "1";
  const coloured = drawRoutes(["A"], [[["q_proj"], ["down_proj"]]], experts);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are control sequences
  const plain = coloured.replace(/\x1b\[\d+m/g, "").split("\n");
  expect(coloured).not.toBe(plain.join("\n"));
  expect(plain.slice(2).map((row) => row.slice(7).trimEnd())).toEqual(["█ · · · · · ·", "· · · · · · █"]);
});

test("experts with equal initials keep their names", () => {
  process.env.NO_COLOR = "1";
  expect(drawRoutes([""], [[["up_proj"]]], ["up_proj", "upper"]).split("\n")[1]).toBe("layer  up    upper");
});
