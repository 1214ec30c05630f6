/** @file Holds what users read first, README.md and the guides, to what milora does; `check:docs` runs all of it. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { blocksOf, checkBlock, compilePrograms, follow, placeOf } from "./documents.ts";
import { root, scratch } from "./project.ts";

const markdownIn = (folder: string) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith(".md"))
    .map((name) => `${folder}/${name}`);

const guides = markdownIn("docs/guides");
const read = ["README.md", "examples/README.md", ...guides];
const blocks = read.flatMap((document) => blocksOf(document));

function place(): string {
  const { path, remove } = scratch();
  onTestFinished(remove);
  return path;
}

test("blocks are found, and unknown words noticed", () => {
  const found = blocksOf("x.md", "# X\n\n```sh needs=gpu\nmilora demo\n```\n\n```json file=a/b.json\n{}\n```\n");
  expect(found).toMatchObject([
    { line: 3, language: "sh", needs: "gpu", text: "milora demo\n" },
    { line: 7, language: "json", file: "a/b.json", background: false },
  ]);
  expect(() => blocksOf("x.md", "```sh needs=luck\n```\n")).toThrow("x.md:1");
  expect(() => checkBlock(blocksOf("x.md", "```json\n{\n```\n")[0]!)).toThrow(SyntaxError);
  expect(() => checkBlock(blocksOf("x.md", "```\n```\n")[0]!)).toThrow("without a language");
});

test("data is what it is called", () => {
  const reference = markdownIn("docs").flatMap((page) => blocksOf(page));
  for (const block of [...blocks, ...reference.filter(({ language }) => language !== "")]) {
    expect(() => checkBlock(block), placeOf(block)).not.toThrow();
  }
});

test("what is not run is what must not be, and no more", () => {
  const left = blocks.filter(({ needs }) => needs !== undefined).map(({ document, needs }) => `${document}: ${needs}`);
  expect(left.sort()).toMatchInlineSnapshot(`
    [
      "README.md: checkout",
      "README.md: hub",
      "README.md: registry",
      "docs/guides/add-a-method.md: checkout",
      "docs/guides/add-a-model.md: checkout",
      "docs/guides/gpu.md: gpu",
      "docs/guides/gpu.md: gpu",
      "docs/guides/reproduce.md: hours",
      "docs/guides/reproduce.md: hours",
      "docs/guides/scale-out.md: objects",
      "docs/guides/scale-out.md: postgres",
      "docs/guides/scale-out.md: postgres",
      "docs/guides/scale-out.md: postgres",
      "docs/guides/scale-out.md: postgres",
      "docs/guides/sweeps.md: postgres",
      "docs/guides/sweeps.md: postgres",
      "docs/guides/your-model.md: hub",
      "examples/README.md: checkout",
    ]
  `);
});

test("programs compile", async () => {
  // Those of the reference that are whole; docs/api.md has declarations.
  const pages = markdownIn("docs").filter((page) => page !== "docs/api.md");
  const reference = pages.flatMap((page) => blocksOf(page)).filter(({ text }) => text.includes('from "milora"'));
  const programs = await compilePrograms(place(), [...blocks, ...reference]);
  expect(programs.size).toBeGreaterThan(1);
});

test.each(["docs/guides/first-adapter.md"])("%s works, with a few steps of training", async (document) => {
  await follow(place(), document, { quick: true });
});

/** Anchors of a page as GitHub makes them. */
function anchorsOf(markdown: string): Set<string> {
  const seen = new Map<string, number>();
  const headings = markdown.replaceAll(/^```[\s\S]*?^```$/gm, "").matchAll(/^#+ (.+)$/gm);
  const anchors = [...headings].map(([, heading]) => {
    const name = heading!
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-");
    const count = seen.get(name) ?? 0;
    seen.set(name, count + 1);
    return count === 0 ? name : `${name}-${count}`;
  });
  return new Set(anchors);
}

test("links lead somewhere", () => {
  const pages = [...read, "CONTRIBUTING.md", "CHANGELOG.md", ...markdownIn("docs")];
  const broken: string[] = [];
  for (const page of pages) {
    const markdown = readFileSync(join(root, page), "utf8");
    for (const [, target] of markdown.replaceAll(/^```[\s\S]*?^```$/gm, "").matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target!)) continue;
      const [path, anchor] = target!.split("#");
      const file = path ? join(dirname(page), path) : page;
      const there = existsSync(join(root, file));
      const known = there && (!anchor || anchorsOf(readFileSync(join(root, file), "utf8")).has(anchor));
      if (!known) broken.push(`${page}: ${target}`);
    }
  }
  expect(broken).toEqual([]);
});

test("every page is named by an index", () => {
  const index = readFileSync(join(root, "docs/README.md"), "utf8");
  expect(markdownIn("docs").filter((page) => !index.includes(`(${page.slice(5)}`))).toEqual(["docs/README.md"]);
  const guideIndex = readFileSync(join(root, "docs/guides/README.md"), "utf8");
  expect(guides.filter((page) => !guideIndex.includes(`(${page.slice(12)}`))).toEqual(["docs/guides/README.md"]);
});
