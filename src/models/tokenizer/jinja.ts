/** @file Jinja templates as Python renders them: what @huggingface/jinja does otherwise is put right in the syntax tree. */
import { Environment, Interpreter, Template } from "@huggingface/jinja";
import { strftime } from "./strftime.ts";

type Node = Record<string, unknown> & { type: string };

const isNode = (value: unknown): value is Node =>
  typeof value === "object" && value !== null && typeof (value as { type?: unknown }).type === "string";

const call = (name: string, ...args: unknown[]): Node => ({
  type: "CallExpression",
  callee: { type: "Identifier", value: name },
  args,
});

const STRIPS = ["strip", "lstrip", "rstrip"];

/** Calls of functions below in place of comparisons, and of strips that are told what to strip. */
function rewritten(node: Node): Node {
  if (node.type === "BinaryExpression") {
    const operator = (node.operator as { value: string }).value;
    if (operator === "==" || operator === "!=")
      return call("equal ", node.left, node.right, literal(operator === "=="));
  }
  if (node.type === "CallExpression" && (node.args as unknown[]).length === 1) {
    const callee = node.callee as Node;
    const name = isNode(callee.property) && callee.computed !== true ? callee.property.value : undefined;
    if (callee.type === "MemberExpression" && STRIPS.includes(name as string)) {
      return call(
        "strip ",
        callee.object,
        (node.args as unknown[])[0],
        literal(name !== "rstrip"),
        literal(name !== "lstrip"),
      );
    }
  }
  return node;
}

const literal = (flag: boolean): Node => ({ type: "Identifier", value: flag ? "true" : "false" });

function rewriteAll(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(rewriteAll);
  if (value instanceof Map) return new Map([...value].map(([key, item]) => [rewriteAll(key), rewriteAll(item)]));
  if (!isNode(value)) return value;
  for (const [key, child] of Object.entries(value)) {
    if (key !== "operator" && typeof child === "object" && child !== null) value[key] = rewriteAll(child);
  }
  return rewritten(value);
}

/** Python's `==`: by content, and never between text and numbers. Parts of lists and mappings are wrapped. */
function equal(left: unknown, right: unknown): boolean {
  if (Array.isArray(left) && Array.isArray(right)) {
    return left.length === right.length && left.every((item, at) => equal(unwrap(item), unwrap(right[at])));
  }
  if (left instanceof Map && right instanceof Map) {
    const has = ([key, item]: [unknown, unknown]) => right.has(key) && equal(unwrap(item), unwrap(right.get(key)));
    return left.size === right.size && [...left].every(has);
  }
  const number = (value: unknown) => (typeof value === "boolean" ? Number(value) : value);
  return number(left) === number(right);
}

const unwrap = (item: unknown): unknown => (item as { value: unknown }).value;

function strip(text: string, characters: string | null, start: boolean, end: boolean): string {
  if (characters === null) return start && end ? text.trim() : start ? text.trimStart() : text.trimEnd();
  const units = [...text];
  let from = 0;
  let to = units.length;
  while (start && from < to && characters.includes(units[from]!)) from++;
  while (end && to > from && characters.includes(units[to - 1]!)) to--;
  return units.slice(from, to).join("");
}

/** As in Python's sandbox, in which transformers runs templates. */
const MOST_RANGE = 100_000;

/** What every template knows. The library's own are the same, but its dates speak the user's language. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  raise_exception: (message: string): never => {
    throw new Error(message);
  },
  range: (start: number, stop?: number, step = 1): number[] => {
    if (step === 0) throw new Error("range() step must not be zero");
    const [from, to] = stop === undefined ? [0, start] : [start, stop];
    const length = Math.max(0, Math.ceil((to - from) / step));
    if (!(length <= MOST_RANGE)) throw new Error(`range() of more than ${MOST_RANGE} numbers`);
    return Array.from({ length }, (_, at) => from + at * step);
  },
  strftime_now: (format: string): string => strftime(new Date(), format),
  // Names that no template can have.
  "equal ": (left: unknown, right: unknown, wanted: boolean) => equal(left, right) === wanted,
  "strip ": strip,
};

export class JinjaTemplate {
  readonly #source: string;
  readonly #program: Template["parsed"];

  /** Throws SyntaxError or Error when it is no Jinja. */
  constructor(source: string) {
    this.#source = source;
    this.#program = rewriteAll(new Template(source).parsed) as Template["parsed"];
  }

  /** Its syntax tree as it is written, before anything is put right. */
  parsed(): unknown {
    return new Template(this.#source).parsed;
  }

  render(variables: Readonly<Record<string, unknown>>): string {
    const environment = new Environment();
    for (const [name, value] of Object.entries({ ...GLOBALS, ...variables })) environment.set(name, value);
    return String(new Interpreter(environment).run(this.#program).value);
  }
}
