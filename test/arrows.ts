/** @file Checks the layers of src/: which file imports what, where koffi and onnxruntime-node may appear, file size and header. */
import { posix } from "node:path";
import { parseSync } from "vite";

/** Rooms from the lowest to the highest; rooms in one row do not know each other. */
const ROWS: readonly (readonly string[])[] = [
  ["base"],
  ["runtime"],
  ["graph"],
  ["models"],
  ["methods"],
  ["training", "generation"],
  ["evaluation"],
  ["serving"],
  ["cli"],
];
const LEVEL = new Map(ROWS.flatMap((row, level) => row.map((room) => [room, level] as const)));

/** Packages that only the room which wraps them may import. */
const OWNED: readonly { readonly pattern: RegExp; readonly room: string }[] = [
  { pattern: /^(koffi|onnxruntime-[a-z]+)(\/|$)/, room: "runtime" },
];

export const MAX_LINES = 400;

/**
 * All problems of a source tree.
 *
 * @param sources text by path, e.g. `src/graph/ops.ts`; paths use forward slashes
 * @returns one line per problem, in the order of the paths; empty when all is well
 */
export function checkSources(sources: ReadonlyMap<string, string>): string[] {
  return [...sources].sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([path, text]) => checkFile(path, text));
}

function checkFile(path: string, text: string): string[] {
  const problems = checkForm(path, text);
  for (const specifier of importsOf(path, text)) {
    const problem = checkImport(path, specifier);
    if (problem) problems.push(`${path}: imports ${JSON.stringify(specifier)}: ${problem}`);
  }
  return problems;
}

/** What a browser may load of what is installed. */
const PAGE_PACKAGES = /^(react|react-dom|@tanstack\/react-query|@observablehq\/plot|wouter)(\/|$)/;

/**
 * All problems of the studio's pages: of the library and the server they know types only, which leave nothing behind when
 * the pages are built.
 *
 * @param sources text by path below studio/
 */
export function checkPages(sources: ReadonlyMap<string, string>): string[] {
  return [...sources].flatMap(([path, text]) => {
    const problems = checkForm(path, text);
    const types = typeImportsOf(path, text);
    for (const specifier of importsOf(path, text)) {
      const outside = !posix.join(posix.dirname(path), specifier).startsWith("studio/");
      const allowed = specifier.startsWith(".") ? !outside || types.has(specifier) : PAGE_PACKAGES.test(specifier);
      if (!allowed)
        problems.push(`${path}: imports ${JSON.stringify(specifier)}: pages may not, but for types of src/`);
    }
    return problems;
  });
}

/** Specifiers of which nothing but types is imported. */
function typeImportsOf(path: string, text: string): ReadonlySet<string> {
  const all = parseSync(path, text).module.staticImports;
  const values = new Set(
    all
      .filter(({ entries }) => entries.length === 0 || !entries.every(({ isType }) => isType))
      .map(({ moduleRequest }) => moduleRequest.value),
  );
  return new Set(all.map(({ moduleRequest }) => moduleRequest.value).filter((specifier) => !values.has(specifier)));
}

function checkForm(path: string, text: string): string[] {
  const problems: string[] = [];
  const lines = text.replace(/\n$/, "").split("\n");
  const header = lines[0]?.startsWith("#!") ? lines[1] : lines[0];
  if (!header?.startsWith("/** @file ")) problems.push(`${path}: its first line must begin with "/** @file "`);
  if (lines.length > MAX_LINES) problems.push(`${path}: ${lines.length} lines, more than ${MAX_LINES}; split it`);
  return problems;
}

function checkImport(path: string, specifier: string): string | undefined {
  const room = roomOf(path);
  const isTest = path.endsWith(".test.ts");
  if (!specifier.startsWith(".")) {
    const owner = OWNED.find(({ pattern }) => pattern.test(specifier));
    return owner && owner.room !== room ? `only src/${owner.room} may` : undefined;
  }
  const target = posix.join(posix.dirname(path), specifier);
  if (!target.endsWith(".ts")) return "a local import must end in .ts";
  if (!target.startsWith("src/")) return isTest ? undefined : "it lies outside src/";
  const targetRoom = roomOf(target);
  if (targetRoom === room) return undefined;
  if (target === "src/index.ts") return isTest ? undefined : "the library's door is for its users";
  if (targetRoom === undefined) return "it belongs to no room";
  const level = LEVEL.get(targetRoom);
  if (level === undefined) return `src/${targetRoom} is no room of the plan`;
  if (target !== `src/${targetRoom}/index.ts`) return `a room is entered through src/${targetRoom}/index.ts`;
  if (room === undefined) return undefined; // src/index.ts sees every door
  const own = LEVEL.get(room);
  if (own === undefined) return `src/${room} is no room of the plan`;
  return level < own ? undefined : `${room} must not know ${targetRoom}`;
}

/** `graph` for src/graph/ops.ts, nothing for src/index.ts. */
function roomOf(path: string): string | undefined {
  const parts = path.split("/");
  return parts[0] === "src" && parts.length > 2 ? parts[1] : undefined;
}

/** Specifiers of static, dynamic, re-exporting and type imports; those that are no literal are given as their source text. */
export function importsOf(path: string, text: string): string[] {
  const { module, program, errors } = parseSync(path, text);
  if (errors.length) throw new Error(`${path}: ${errors.map((error) => error.message).join("; ")}`);
  const found = new Set<string>();
  for (const { moduleRequest } of module.staticImports) found.add(moduleRequest.value);
  for (const { entries } of module.staticExports) {
    for (const { moduleRequest } of entries) if (moduleRequest) found.add(moduleRequest.value);
  }
  for (const { moduleRequest } of module.dynamicImports) {
    const source = text.slice(moduleRequest.start, moduleRequest.end);
    found.add(/^(["'`]).*\1$/s.test(source) ? source.slice(1, -1) : source);
  }
  const visit = (node: unknown): void => {
    if (typeof node !== "object" || node === null) return;
    const { type, source } = node as { type?: unknown; source?: { value?: unknown } };
    if (type === "TSImportType" && typeof source?.value === "string") found.add(source.value); // import("x").T
    Object.values(node).forEach(visit);
  };
  visit(program);
  return [...found];
}
