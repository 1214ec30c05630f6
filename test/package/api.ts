/** @file Writes docs/api.md: what the package exports, from its declarations and their comments. */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseSync } from "vite";

type Program = ReturnType<typeof parseSync>["program"];
type Statement = Program["body"][number];

/** What one exported name stands for. */
export interface Entry {
  readonly name: string;
  readonly kind: "class" | "function" | "value" | "type" | "namespace";
  /** The text of its doc comment, without the stars; "" without one. */
  readonly comment: string;
  /** Its declaration, every overload, as TypeScript; "" of a namespace. */
  readonly declaration: string;
  /** The room it comes from: the first folder below the package's root. */
  readonly room: string;
  /** Of a namespace. */
  readonly entries: readonly Entry[];
  /** Types of the package that it names. */
  types(): Entry[];
}

interface Module {
  readonly path: string;
  readonly source: string;
  readonly body: readonly Statement[];
  readonly comments: readonly { readonly value: string; readonly start: number; readonly end: number }[];
}

export interface Entries {
  /** Everything that a declaration file exports, in its order; what other packages export is left out. */
  readonly exported: readonly Entry[];
  /** Types that its declarations name and that are not exported; by name. */
  readonly named: readonly Entry[];
}

export function entriesOf(root: string, path: string): Entries {
  const modules = new Map<string, Module>();

  function load(file: string): Module {
    const known = modules.get(file);
    if (known) return known;
    const source = readFileSync(file, "utf8");
    const { program, comments, errors } = parseSync(file, source);
    if (errors.length > 0) throw new Error(`${file}: ${errors[0]!.message}`);
    const module = { path: file, source, body: program.body, comments };
    modules.set(file, module);
    return module;
  }

  function exportsOf(module: Module): Map<string, () => Entry> {
    const found = new Map<string, () => Entry>();
    for (const statement of module.body) {
      if (statement.type === "ExportAllDeclaration") {
        const inner = exportsOf(load(resolve(module.path, statement.source.value)));
        if (statement.exported === null) for (const [name, entry] of inner) found.set(name, entry);
        else {
          const name = nameOf(statement.exported);
          const comment = commentBefore(module, statement.start);
          const entries = () => [...inner.values()].map((entry) => entry());
          const room = roomOf(root, resolve(module.path, statement.source.value));
          found.set(name, () => ({
            name,
            kind: "namespace",
            comment,
            declaration: "",
            room,
            entries: entries(),
            types: () => [],
          }));
        }
      } else if (statement.type === "ExportNamedDeclaration" && statement.source !== null) {
        if (!statement.source.value.startsWith(".")) continue;
        const inner = exportsOf(load(resolve(module.path, statement.source.value)));
        for (const { local, exported } of statement.specifiers) {
          const entry = inner.get(nameOf(local));
          if (!entry) throw new Error(`${module.path}: ${statement.source.value} does not export ${nameOf(local)}`);
          found.set(nameOf(exported), () => ({ ...entry(), name: nameOf(exported) }));
        }
      } else if (statement.type === "ExportNamedDeclaration") {
        for (const name of namesOf(statement.declaration)) found.set(name, () => declared(module, name));
        for (const { local, exported } of statement.specifiers) {
          found.set(nameOf(exported), () => ({ ...declared(module, nameOf(local)), name: nameOf(exported) }));
        }
      }
    }
    return found;
  }

  function declared(module: Module, name: string): Entry {
    const parts = module.body.filter((statement) => namesOf(declarationOf(statement)).includes(name));
    if (parts.length === 0) return imported(module, name);
    const first = declarationOf(parts[0]!)!;
    return {
      name,
      kind: kindOf(first.type),
      comment: commentBefore(module, parts[0]!.start),
      declaration: parts.map((part) => tidy(module.source.slice(part.start, part.end))).join("\n"),
      room: roomOf(root, module.path),
      entries: [],
      types: () => typesIn(parts).flatMap((type) => (isKnownIn(module, type) ? [declared(module, type)] : [])),
    };
  }

  function isKnownIn(module: Module, name: string): boolean {
    return module.body.some((statement) =>
      statement.type === "ImportDeclaration"
        ? statement.source.value.startsWith(".") && statement.specifiers.some(({ local }) => local.name === name)
        : namesOf(declarationOf(statement)).includes(name),
    );
  }

  /** A name that a module has from elsewhere and exports as its own. */
  function imported(module: Module, name: string): Entry {
    for (const statement of module.body) {
      if (statement.type !== "ImportDeclaration") continue;
      for (const specifier of statement.specifiers) {
        if (specifier.local.name !== name || specifier.type !== "ImportSpecifier") continue;
        const entry = exportsOf(load(resolve(module.path, statement.source.value))).get(nameOf(specifier.imported));
        if (entry) return entry();
      }
    }
    throw new Error(`${module.path} exports ${name}, which is not declared there`);
  }

  const exported = [...exportsOf(load(path)).values()].map((entry) => entry());
  const seen = new Set([...exported, ...exported.flatMap(({ entries }) => entries)].map(originOf));
  const named: Entry[] = [];
  for (const entry of exported) named.push(...entry.types().filter((type) => isNew(seen, type)));
  return { exported, named: named.sort((a, b) => (a.name < b.name ? -1 : 1)) };
}

/** Tells declarations apart; names may be given anew on the way out. */
const originOf = ({ room, declaration }: Entry): string => `${room} ${declaration}`;

function isNew(seen: Set<string>, entry: Entry): boolean {
  const size = seen.size;
  return entry.kind !== "namespace" && seen.add(originOf(entry)).size > size;
}

/** Names of the types that declarations refer to. */
function typesIn(nodes: readonly unknown[]): string[] {
  const found = new Set<string>();
  const inner = [...nodes];
  for (const node of inner) {
    if (typeof node !== "object" || node === null) continue;
    if ("type" in node && node.type === "PropertyDefinition" && isPrivate(node)) continue;
    for (const key of ["typeName", "expression", "superClass"]) {
      const name = key in node ? (node as Record<string, unknown>)[key] : undefined;
      if (typeof name === "object" && name !== null && "type" in name && name.type === "Identifier" && "name" in name) {
        found.add(String(name.name));
      }
    }
    inner.push(...Object.values(node));
  }
  return [...found];
}

const isPrivate = (node: object): boolean => "accessibility" in node && node.accessibility === "private";

function declarationOf(statement: Statement) {
  return statement.type === "ExportNamedDeclaration" ? statement.declaration : statement;
}

function namesOf(declaration: ReturnType<typeof declarationOf>): string[] {
  switch (declaration?.type) {
    case "VariableDeclaration":
      return declaration.declarations.flatMap(({ id }) => (id.type === "Identifier" ? [id.name] : []));
    case "ClassDeclaration":
    case "FunctionDeclaration":
    case "TSDeclareFunction":
    case "TSInterfaceDeclaration":
    case "TSTypeAliasDeclaration":
      return declaration.id ? [declaration.id.name] : [];
    default:
      return [];
  }
}

function kindOf(type: string): Entry["kind"] {
  if (type === "ClassDeclaration") return "class";
  if (type === "TSInterfaceDeclaration" || type === "TSTypeAliasDeclaration") return "type";
  return type === "VariableDeclaration" ? "value" : "function";
}

function nameOf(name: { readonly name: string } | { readonly value: string }): string {
  return "name" in name ? name.name : name.value;
}

/** Declarations name their sources, `./x.ts`; beside them lies `./x.d.ts`. */
function resolve(from: string, specifier: string): string {
  const path = join(dirname(from), specifier).replace(/\.[jt]s$/, ".d.ts");
  if (!existsSync(path)) throw new Error(`${from} names ${specifier}, which is not there`);
  return path;
}

function roomOf(root: string, path: string): string {
  return path.slice(root.length).split("/").filter(Boolean)[0]!;
}

/** The doc comment that ends where a declaration begins. */
function commentBefore(module: Module, start: number): string {
  const comment = module.comments.findLast(({ end }) => end <= start);
  if (!comment?.value.startsWith("*") || comment.value.startsWith("* @file")) return "";
  if (module.source.slice(comment.end, start).trim() !== "") return "";
  return comment.value
    .slice(1)
    .split("\n")
    .map((line) => line.replace(/^\s*\* ?/, "").trimEnd())
    .join("\n")
    .trim();
}

/** A declaration without what a reader has no use for. */
function tidy(text: string): string {
  return text
    .replace(/^export (declare )?/, "")
    .replace(/^declare /, "")
    .replace(/(^ *\/\*\*(?:(?!\*\/)[\s\S])*\*\/\n)?^ *(#private|private [^\n]*);\n/gm, "")
    .replaceAll(/^( +)(readonly "[^"]+": \{)\n[\s\S]*?^\1\};$/gm, "$1$2 … };")
    .replaceAll(/^( {4})+/gm, (indent) => " ".repeat(indent.length / 2));
}

/** A comment as Markdown: prose, then what its tags say as a list. */
function prose(comment: string): string {
  const [text = "", ...tags] = comment.split(/^@/m);
  const items = tags.map((tag) => {
    const [, name, rest] = /^(\w+) ?([\s\S]*)$/.exec(tag)!;
    const body = rest!.trim().replaceAll(/\s*\n\s*/g, " ");
    if (name === "param") return `- ${body.replace(/^(\S+)/, "`$1`")}`;
    return `- ${name}: ${body}`;
  });
  return [escaped(text.trim()), items.map(escaped).join("\n")].filter(Boolean).join("\n\n");
}

/** Angle brackets outside of code would be read as HTML. */
function escaped(text: string): string {
  return text
    .split(/(`[^`]*`)/)
    .map((part, index) => (index % 2 === 1 ? part : part.replaceAll("<", "&lt;")))
    .join("");
}

const ROOMS: Readonly<Record<string, string>> = {
  generation: "Generating and scoring",
  training: "Training",
  methods: "Methods and adapters",
  models: "Backbones and tokenizers",
  evaluation: "Evaluation, the paper repeated",
  runtime: "Tensors and devices",
  base: "Errors",
  graph: "Graphs, for methods of your own",
};

/** The whole page. */
export function apiPage({ exported: entries, named }: Entries): string {
  const lines = [
    "# The library",
    "",
    'What `import … from "milora"` gives, from the comments in the sources. How it is used: [guides](guides/README.md),',
    "[examples](../examples/README.md). Shapes stand in brackets, `[B, T, d]`. What owns memory outside of JavaScript is",
    "`Disposable`: `using engine = Engine.create(backbone)`.",
    "",
  ];
  const rooms = Object.keys(ROOMS);
  const unknown = entries.find((entry) => !rooms.includes(entry.room));
  if (unknown) throw new Error(`${unknown.name} is of the room ${unknown.room}, which has no heading in docs/api.md`);
  const grouped = rooms.map((room) => ({ room, mine: entries.filter((entry) => entry.room === room) }));
  for (const { room, mine } of grouped) {
    const links = mine.map(({ name }) => `[\`${name}\`](#${name.toLowerCase()})`).join(" · ");
    lines.push(`**${ROOMS[room]}**: ${links}`, "");
  }
  lines.push("Types of options and results without an export of their own are [at the end](#named-by-these).", "");
  for (const { room, mine } of grouped) {
    lines.push(`## ${ROOMS[room]}`, "");
    for (const entry of mine) lines.push(...section(entry, "###"));
  }
  lines.push("## Named by these", "", "Types of options and results that have no export of their own.", "");
  for (const entry of named) lines.push(...section(entry, "###"));
  return `${lines.join("\n").trimEnd()}\n`;
}

function section(entry: Entry, heading: string): string[] {
  const text = prose(entry.comment);
  if (entry.kind !== "namespace") {
    return [
      `${heading} ${entry.name}`,
      "",
      ...(text ? [text, ""] : []),
      "```ts",
      entry.declaration.trimEnd(),
      "```",
      "",
    ];
  }
  const inner = entry.entries.flatMap((inside) => [
    ...(inside.comment ? [`/** ${inside.comment.replaceAll("\n", "\n *  ")} */`] : []),
    inside.declaration.trimEnd(),
  ]);
  return [`${heading} ${entry.name}`, "", ...(text ? [text, ""] : []), "```ts", ...inner, "```", ""];
}
