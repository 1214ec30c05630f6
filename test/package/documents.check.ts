/** @file Does all that README.md, the guides and the examples say, on the bundled model, each in a directory of its own. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { blocksOf, follow, NEEDS } from "./documents.ts";
import { root, scratch } from "./project.ts";

const guides = readdirSync(join(root, "docs/guides")).filter((name) => name.endsWith(".md"));
const documents = ["README.md", ...guides.map((name) => `docs/guides/${name}`)];

/** A few steps of training instead of all: a look at whether everything fits together. */
const quick = process.env.MILORA_QUICK === "1";

test.each(documents)("%s", async (document) => {
  const { path, remove } = scratch();
  try {
    let done = 0;
    await follow(path, document, quick, ({ place, seconds }) => {
      done++;
      console.log(`${place}  ${seconds.toFixed(1)} s`);
    });
    expect(done).toBe(blocksOf(document).filter(({ needs }) => needs === undefined).length);
  } finally {
    remove();
  }
});

afterAll(() => {
  const left = documents.flatMap((document) => blocksOf(document)).filter(({ needs }) => needs !== undefined);
  console.log(`not run: ${left.length} blocks`);
  for (const { document, line, needs } of left) console.log(`${document}:${line}  needs ${NEEDS[needs!]}`);
});
