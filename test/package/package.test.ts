/** @file What goes to the registry: its files, that all it imports is declared, and that it runs in an empty project. */
import { existsSync, readFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import { join } from "node:path";
import { parseSync } from "vite";
import { afterAll, expect, test } from "vitest";
import { compile, link, manifest, project, RESOLUTIONS, root, run, scratch } from "./project.ts";

const place = scratch();
afterAll(() => place.remove());

const packed = await project(place.path);
const paths = packed.files.map(({ path }) => path);
const declared = Object.keys(manifest.dependencies);

/** Modules that a file imports, statically, dynamically or for their types. */
function importsOf(path: string): string[] {
  const { module, program } = parseSync(path, readFileSync(join(root, path), "utf8"));
  const found: string[] = [...module.staticImports, ...module.staticExports.flatMap(({ entries }) => entries)]
    .map((item) => item.moduleRequest?.value)
    .filter((value) => value !== undefined);
  const inner: unknown[] = [program];
  for (const node of inner) {
    if (typeof node !== "object" || node === null) continue;
    if ("type" in node && (node.type === "ImportExpression" || node.type === "TSImportType") && "source" in node) {
      const { source } = node as { readonly source: { readonly value?: unknown } };
      if (typeof source.value === "string") found.push(source.value);
    }
    inner.push(...Object.values(node));
  }
  return found;
}

const packageOf = (name: string) => name.split("/", name.startsWith("@") ? 2 : 1).join("/");

test("everything that is imported is a dependency", () => {
  const code = paths.filter((path) => /^dist\/(?!studio\/).*\.(js|d\.ts)$/.test(path));
  expect(code.length).toBeGreaterThan(500);
  const wrong = code.flatMap((path) =>
    importsOf(path)
      .filter((name) => !/^\.{0,2}\//.test(name) && !isBuiltin(name) && !declared.includes(packageOf(name)))
      .map((name) => `${path}: ${name}`),
  );
  expect(wrong).toEqual([]);
});

test("imports of every kind are seen", () => {
  expect(importsOf("dist/cli/program.js")).toEqual(expect.arrayContaining(["commander", "./commands/train.js"]));
  expect(importsOf("dist/index.d.ts")).toContain("./generation/index.ts");
  expect(importsOf("dist/serving/store/schema.d.ts")).toContain("drizzle-orm/pg-core");
});

test("relative imports are in the package, with the case of their letters", () => {
  const wrong = paths
    .filter((path) => /^dist\/(?!studio\/).*\.js$/.test(path))
    .flatMap((path) => importsOf(path).map((name) => ({ path, name })))
    .filter(({ name }) => name.startsWith("."))
    .filter(({ path, name }) => !paths.includes(join(path, "..", name)));
  expect(wrong).toEqual([]);
});

/** What the package needs besides dist/: read at run time, or named by the documents. */
const NEEDED = [
  "LICENSE",
  "README.md",
  "package.json",
  "dist/index.js",
  "dist/index.d.ts",
  "dist/cli/main.js",
  "dist/studio/index.html",
  "assets/tiny-llama/config.json",
  "assets/tiny-llama/model.safetensors",
  "assets/tiny-llama/tokenizer.json",
  "assets/data/subjects/train.jsonl",
  "assets/data/authors/test.jsonl",
  "assets/data/passages.txt",
  "assets/database/cluster.tar.br",
  "configs/demo-subjects-milora.yaml",
  "configs/paper-milora-boolq.yaml",
  "docs/README.md",
  "docs/api.md",
  "docs/cli.md",
  "docs/guides/README.md",
  "native/prebuilt/linux-x64.so",
];

test("the files that are needed are there, and no others", () => {
  expect(NEEDED.filter((path) => !paths.includes(path))).toEqual([]);
  // Stale files of an earlier build are nobody's fault here: a release is built in a clean copy (package.check.ts).
  const known = /^(LICENSE|README\.md|CHANGELOG\.md|package\.json|(dist|assets|configs|docs|native)\/.+)$/;
  const unwanted = /(\.test\.|\/(fixtures|benchmarks|examples|node_modules|milora-data)\/|\.tsbuildinfo$)/;
  expect(paths.filter((path) => !known.test(path) || unwanted.test(path))).toEqual([]);
});

test("it is as large as CONTRIBUTING.md says", () => {
  const text = readFileSync(join(root, "CONTRIBUTING.md"), "utf8");
  const [, most] = /at most (\d+) MB packed/.exec(text)!;
  expect(packed.size).toBeLessThan(Number(most) * 1e6);
  const large = packed.files.filter(({ size }) => size > 2e6).map(({ path }) => path);
  expect(large).toEqual(["assets/tiny-llama/model.safetensors"]);
});

test("dependencies are pinned, and none is there twice", () => {
  expect(
    Object.entries(manifest.dependencies).filter(([, version]) => !/^\d+\.\d+\.\d+(-\d+)?$/.test(version)),
  ).toEqual([]);
  expect(declared.filter((name) => name in manifest.devDependencies)).toEqual([]);
});

const main = join(place.path, "node_modules/milora/dist/cli/main.js");
const tiny = join(place.path, "node_modules/milora/assets/tiny-llama");

test("the command runs in a project that has installed it", async () => {
  const help = await run(process.execPath, [main, "--help"], { cwd: place.path });
  expect(help.stdout).toContain("milora demo");
  await expect(run(process.execPath, [main, "demo", "--help"], { cwd: place.path })).resolves.toMatchObject({
    stderr: "",
  });
  const args = [main, "generate", "--model", tiny, "--prompt", "The cell membrane", "--max-new-tokens", "8", "--json"];
  const { stdout, stderr } = await run(process.execPath, args, { cwd: place.path });
  expect(JSON.parse(stdout)).toMatchObject({ finishReason: "length" });
  expect(stderr).toBe("");
});

test("a configuration of the package is found from the project", async () => {
  const config = join(place.path, "node_modules/milora/configs/demo-subjects-milora.yaml");
  await expect(
    run(process.execPath, [main, "config", "check", config, "--json"], { cwd: place.path }),
  ).resolves.toMatchObject({
    stderr: "",
  });
});

// Node's resolution as it is now is in package.check.ts.
test.each(RESOLUTIONS.filter(({ module }) => module !== "nodenext"))(
  "a program compiles with $moduleResolution and runs",
  async (resolution) => {
    const modules = join(place.path, "node_modules");
    for (const name of ["@types/node", "undici-types"]) if (!existsSync(join(modules, name))) link(modules, name);
    const program = await compile(place.path, resolution, join(root, "node_modules/typescript/bin/tsc"));
    const { stdout } = await run(process.execPath, [program, tiny], { cwd: place.path });
    expect(JSON.parse(stdout)).toMatchObject({ valid: false, code: "FILE_UNREADABLE", graph: "object" });
  },
);
