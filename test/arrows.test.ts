/** @file Holds the layers of src/: imports point downwards and through doors only; files stay short and say why they exist. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkPages, checkSources, importsOf, MAX_LINES } from "./arrows.ts";

const root = join(import.meta.dirname, "..");

test("src/ keeps to its layers", () => {
  const paths = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" }).filter((p) => p.endsWith(".ts"));
  expect(paths.length).toBeGreaterThan(10);
  const sources = paths.map((p) => [`src/${p.replaceAll("\\", "/")}`, readFileSync(join(root, "src", p), "utf8")]);
  expect(checkSources(new Map(sources as [string, string][]))).toEqual([]);
});

test("the studio's pages know types of the rest only", () => {
  const paths = readdirSync(join(root, "studio/src"), { recursive: true, encoding: "utf8" });
  const files = paths.map((path) => `studio/src/${path.replaceAll("\\", "/")}`).filter((path) => /\.tsx?$/.test(path));
  expect(files.length).toBeGreaterThan(10);
  expect(checkPages(new Map(files.map((path) => [path, readFileSync(join(root, path), "utf8")])))).toEqual([]);
});

test.each([
  ["a value of the server", `import { z } from "../../src/serving/index.ts";`],
  ["a value beside a type", `import { type A, b } from "../../src/serving/studio/types.ts";`],
  ["a file for what it does", `import "../../src/serving/index.ts";`],
  ["a value, lazily", `await import("../../src/base/index.ts");`],
  ["a package of the server", `import fastify from "fastify";`],
])("pages may not import %s", (_, code) => {
  const good = `/** @file x */\nimport { useState } from "react";\nimport type { A } from "../../src/serving/studio/types.ts";\n`;
  expect(checkPages(new Map([["studio/src/a.tsx", good]]))).toEqual([]);
  expect(checkPages(new Map([["studio/src/a.tsx", `${good}${code}\n`]]))).toHaveLength(1);
});

describe("the checker", () => {
  const check = (path: string, code: string) => checkSources(new Map([[path, `/** @file x */\n${code}\n`]]));

  test("allows imports downwards, inside a room and of packages", () => {
    const code = `import { z } from "zod";
      import type { Value } from "../graph/index.ts";
      import { MiloraError } from "../base/index.ts";
      import { lora } from "./lora/index.ts";
      export const later = () => import("../models/index.ts");`;
    expect(check("src/methods/table.ts", code)).toEqual([]);
    expect(check("src/methods/lora/index.ts", `export * from "../method.ts";`)).toEqual([]);
    expect(check("src/index.ts", `export * from "./cli/index.ts";`)).toEqual([]);
    expect(check("src/runtime/library.ts", `import koffi from "koffi";`)).toEqual([]);
  });

  test.each([
    ["upwards", "src/graph/a.ts", `import { x } from "../models/index.ts";`, "graph must not know models"],
    ["upwards, a type", "src/base/a.ts", `import type { x } from "../graph/index.ts";`, "base must not know graph"],
    ["upwards, lazily", "src/runtime/a.ts", `await import("../cli/index.ts");`, "runtime must not know cli"],
    ["upwards, re-exported", "src/base/a.ts", `export { x } from "../graph/index.ts";`, "base must not know graph"],
    ["upwards, import type", "src/base/a.ts", `type X = import("../cli/index.ts").X;`, "base must not know cli"],
    ["between siblings", "src/training/a.ts", `import "../generation/index.ts";`, "training must not know generation"],
    ["past the door", "src/cli/a.ts", `import "../graph/ops.ts";`, "entered through src/graph/index.ts"],
    ["past the door, from the top", "src/index.ts", `export * from "./graph/ops.ts";`, "entered through"],
    ["of an unknown room", "src/cli/a.ts", `import "../utils/index.ts";`, "no room of the plan"],
    ["from an unknown room", "src/utils/a.ts", `import "../base/index.ts";`, "no room of the plan"],
    ["of the library's door", "src/cli/a.ts", `import "../index.ts";`, "door is for its users"],
    ["out of src/", "src/cli/a.ts", `import "../../test/arrows.ts";`, "outside src/"],
    ["without .ts", "src/cli/a.ts", `import "./b.js";`, "must end in .ts"],
    ["of koffi", "src/graph/a.ts", `import koffi from "koffi";`, "only src/runtime may"],
    ["of onnxruntime-node", "src/cli/a.ts", `const o = await import("onnxruntime-node");`, "only src/runtime may"],
  ])("finds an import %s", (_, path, code, message) => {
    const problems = check(path, code);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toContain(message);
  });

  test("finds long files and files without a header", () => {
    const long = `/** @file x */\n${"export {};\n".repeat(MAX_LINES)}`;
    expect(checkSources(new Map([["src/base/a.ts", long]]))[0]).toContain(`${MAX_LINES + 1} lines`);
    expect(checkSources(new Map([["src/base/a.ts", "export {};\n"]]))[0]).toContain("first line");
    expect(check("src/base/a.ts", "export {};")).toEqual([]);
    expect(checkSources(new Map([["src/cli/main.ts", "#!/usr/bin/env node\n/** @file x */\n"]]))).toEqual([]);
  });

  test("is not misled by text that looks like an import", () => {
    const code = `// import "../cli/index.ts"\nconst s = 'import "koffi"'; function f<T>(x: T): asserts x is T {}`;
    expect(importsOf("src/base/a.ts", code)).toEqual([]);
  });
});
