/** @file A user's own prompt template in Jinja: which fields of a row it needs, and what it makes of them. */
import { readFileSync } from "node:fs";
import { InputError, reasonOf } from "../base/index.ts";
import { JinjaTemplate } from "../models/index.ts";
import type { Row } from "./rows.ts";
import { nearest } from "./text.ts";

/** Templates that need no writing. */
export const TEMPLATE_NAMES = ["alpaca", "chat", "none"] as const;
export type Template = (typeof TEMPLATE_NAMES)[number] | PromptTemplate;

/** What is learned or asked for: a prompt that shows it would give it away. */
const ANSWERS = ["output", "completion", "response", "answer"];
/** Names that Jinja itself knows. */
const BUILT_IN = new Set(
  "loop caller range namespace raise_exception strftime_now true false none True False None".split(" "),
);

type Node = Readonly<Record<string, unknown>> & { readonly type: string };

const isNode = (value: unknown): value is Node =>
  typeof value === "object" && value !== null && typeof (value as { type?: unknown }).type === "string";

/** Names in a syntax tree: those that are read, those that are only asked for (`if x`, `x | default`), those it sets. */
class Names {
  readonly read = new Set<string>();
  readonly asked = new Set<string>();
  readonly bound = new Set<string>();

  visit(value: unknown, role: "read" | "asked" | "bound" = "read"): void {
    if (value instanceof Map) for (const [key, item] of value) this.#all([key, item], role);
    else if (Array.isArray(value)) this.#all(value, role);
    else if (isNode(value)) this.#node(value, role);
  }

  #all(values: readonly unknown[], role: "read" | "asked" | "bound"): void {
    for (const value of values) this.visit(value, role);
  }

  #node(node: Node, role: "read" | "asked" | "bound"): void {
    switch (node.type) {
      case "Identifier":
        this[role].add(node.value as string);
        return;
      case "MemberExpression":
        this.visit(node.object, role === "bound" ? "read" : role);
        if (node.computed) this.visit(node.property);
        return;
      case "If":
        this.visit(node.test, "asked");
        this.#all([node.body, node.alternate], "read");
        return;
      case "Ternary":
        this.visit(node.condition, "asked");
        this.#all([node.trueExpr, node.falseExpr], role);
        return;
      case "FilterExpression":
      case "FilterStatement":
        this.#filter(node, role);
        return;
      case "TestExpression":
        this.visit(node.operand, "asked");
        return;
      case "KeywordArgumentExpression":
        this.visit(node.value, role);
        return;
      case "For":
        this.visit(node.loopvar, "bound");
        this.#all([node.iterable, node.body, node.defaultBlock], "read");
        return;
      case "Set":
        this.visit(node.assignee, "bound");
        this.#all([node.value, node.body], "read");
        return;
      case "Macro":
        this.visit(node.name, "bound");
        this.#parameters(node.args);
        this.visit(node.body);
        return;
      case "CallStatement":
        this.#parameters(node.callerArgs);
        this.#all([node.call, node.body], "read");
        return;
      default:
        for (const [key, child] of Object.entries(node)) if (key !== "operator") this.visit(child, role);
    }
  }

  #parameters(args: unknown): void {
    for (const arg of (args ?? []) as Node[])
      this.visit(arg.type === "KeywordArgumentExpression" ? arg.key : arg, "bound");
  }

  /** `x | default("…")` asks for x; a filter's own name is none of ours, its arguments are. */
  #filter(node: Node, role: "read" | "asked" | "bound"): void {
    const filter = node.filter as Node;
    const name = (filter.type === "CallExpression" ? (filter.callee as Node).value : filter.value) as string;
    this.visit(node.operand ?? node.body, name === "default" || name === "d" ? "asked" : role);
    if (filter.type === "CallExpression") this.visit(filter.args);
  }
}

/** A prompt written in Jinja. Its variables are the fields of the row, save those that hold the answer. */
export class PromptTemplate {
  /** The Jinja source. */
  readonly source: string;
  /** What messages call it. */
  readonly name: string;
  /** Fields that every row must have: those that are printed or gone through, and not only asked for. */
  readonly required: readonly string[];
  readonly #compiled: JinjaTemplate;

  /** @throws InputError TEMPLATE_INVALID when it is no Jinja, or shows the answer */
  constructor(source: string, name = "template") {
    this.source = source;
    this.name = name;
    const names = new Names();
    try {
      this.#compiled = new JinjaTemplate(source);
      names.visit(this.#compiled.parsed());
    } catch (error) {
      throw new InputError("TEMPLATE_INVALID", name, `is no Jinja template (${reasonOf(error)})`, { cause: error });
    }
    const free = (set: ReadonlySet<string>) => [...set].filter((key) => !names.bound.has(key) && !BUILT_IN.has(key));
    const given = [...free(names.read), ...free(names.asked)].filter((key) => ANSWERS.includes(key));
    if (given.length) {
      const problem = `uses "${given[0]}", which is what the model is to answer; a prompt cannot show it`;
      throw new InputError("TEMPLATE_INVALID", name, problem);
    }
    this.required = free(names.read).filter((key) => !names.asked.has(key));
  }

  /** Fields that the template needs and the row does not have. */
  missing(row: Row): string[] {
    const variables = variablesOf(row);
    return this.required.filter((name) => variables[name] === undefined || variables[name] === null);
  }

  /** The prompt of a row. Throws `InputError` naming the row and what it lacks. */
  render(row: Row): string {
    const missing = this.missing(row);
    if (missing.length) throw new InputError("DATA_INVALID", this.name, lacks(row, missing));
    try {
      return this.#compiled.render({ ...variablesOf(row) });
    } catch (error) {
      const problem = `cannot show row ${row.number} (${reasonOf(error)})`;
      throw new InputError("DATA_INVALID", this.name, problem, { cause: error });
    }
  }

  toJSON(): { name: string; source: string } {
    return { name: this.name, source: this.source };
  }
}

/** `row 3: missing "context"`, as bad rows are named everywhere. */
export function lacks(row: Row, missing: readonly string[]): string {
  const where = row.file === undefined ? "" : `${row.file} `;
  return `${where}row ${row.number}: missing ${missing.map((name) => `"${name}"`).join(", ")}`;
}

/** All fields of the row, but not its answer. Optional fields of its form are there, empty. */
function variablesOf(row: Row): Readonly<Record<string, unknown>> {
  const variables: Record<string, unknown> = { ...row.fields };
  for (const name of ANSWERS) delete variables[name];
  if (row.form === "messages") variables.messages = row.messages.slice(0, -1).map((message) => ({ ...message }));
  else if (row.form === "instruction") Object.assign(variables, { instruction: row.instruction, input: row.input });
  else if (row.form === "completion") variables.prompt = row.prompt;
  return variables;
}

/**
 * The template that a config or flag names: `alpaca`, `chat`, `none`, the path of a Jinja file, or Jinja itself, which
 * is known by `{{` or `{%`.
 * @throws InputError TEMPLATE_INVALID, FILE_UNREADABLE
 */
export function templateOf(given: string | PromptTemplate): Template {
  if (given instanceof PromptTemplate) return given;
  const name = TEMPLATE_NAMES.find((known) => known === given);
  if (name !== undefined) return name;
  if (/\{[{%]/.test(given)) return new PromptTemplate(given, "template");
  let source: string;
  try {
    source = readFileSync(given, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") {
      throw new InputError("FILE_UNREADABLE", given, reasonOf(error), { cause: error });
    }
    const meant = nearest(given, TEMPLATE_NAMES);
    const hint = meant === undefined ? "" : ` (did you mean "${meant}"?)`;
    const problem = `is not one of ${TEMPLATE_NAMES.join(", ")}, no file, and no Jinja template${hint}`;
    throw new InputError("TEMPLATE_INVALID", `"${given}"`, problem, { cause: error });
  }
  return new PromptTemplate(source, given);
}
