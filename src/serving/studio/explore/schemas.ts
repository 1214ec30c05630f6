/** @file What the routing explorer is asked, checked as it comes in. */
import { z } from "zod";

/** Rows of data that are routed at most. */
export const MOST_ROWS = 2000;

const model = z.string().min(1).max(400);

export const exploreSchema = z.strictObject({
  adapters: z
    .array(model)
    .min(1)
    .max(4)
    .refine((names) => new Set(names).size === names.length, "names an adapter twice")
    .describe("`model` names of adapters that route; at most 4"),
  prompt: z.string().describe("the prompt that is routed"),
  format: z
    .enum(["raw", "chat", "alpaca"])
    .default("raw")
    .describe(
      "raw: as it is; chat: a user's message in the server's chat format; alpaca: an instruction as in training",
    ),
});

export const exploreDataSchema = z
  .strictObject({
    adapter: model.describe("`model` name of an adapter that routes"),
    name: z.string().min(1).max(200).optional().describe("one of GET /studio/v1/data"),
    text: z.string().min(1).optional().describe("or rows of your own"),
    format: z.enum(["jsonl", "json", "csv"]).default("jsonl").describe("what `text` is"),
    limit: z.int().min(1).max(MOST_ROWS).default(MOST_ROWS).describe("only the first rows"),
    template: z.enum(["alpaca", "chat", "none"]).default("alpaca").describe("how rows become prompts, as for training"),
  })
  .refine(({ name, text }) => (name === undefined) !== (text === undefined), {
    path: ["name"],
    error: "send either the name of a data set or the text of one",
  });

export type ExploreDataBody = z.output<typeof exploreDataSchema>;
