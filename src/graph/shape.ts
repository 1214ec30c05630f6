/** @file Sizes that may be symbols: polynomials with integer coefficients ("B*T", "P+T", "T-1"), in one canonical spelling. */
import { GraphError } from "./errors.ts";

/** A size: a number, a symbol "B", or a canonical expression over symbols such as "B*T" or "P+T". */
export type Dim = number | string;
export type Shape = readonly Dim[];

/** Monomial ("B*T", "" for the constant) to coefficient. No zero coefficients. */
type Polynomial = ReadonlyMap<string, number>;

const parsed = new Map<string, Polynomial>();

function polynomial(dim: Dim): Polynomial {
  if (typeof dim === "number") return new Map(dim === 0 ? [] : [["", dim]]);
  let known = parsed.get(dim);
  if (known === undefined) {
    known = parse(dim);
    parsed.set(dim, known);
  }
  return known;
}

/** Recursive descent over sums, products, integers, symbols and parentheses. */
function parse(text: string): Polynomial {
  const tokens = text.match(/[A-Za-z_][\w.]*|\d+|[-+*()]|\S/g) ?? [];
  let at = 0;
  const bad = (): never => {
    throw new GraphError("BAD_ATTRIBUTE", `"${text}" is not a size: use symbols and integers joined by * + -`);
  };
  const factor = (): Polynomial => {
    const token = tokens[at++];
    if (token === undefined) return bad();
    if (token === "(") {
      const inner = sum();
      return tokens[at++] === ")" ? inner : bad();
    }
    if (token === "-") return multiply(new Map([["", -1]]), factor());
    if (/^\d/.test(token)) return polynomial(Number(token));
    return /^[A-Za-z_]/.test(token) ? new Map([[token, 1]]) : bad();
  };
  const product = (): Polynomial => {
    let result = factor();
    while (tokens[at] === "*") {
      at++;
      result = multiply(result, factor());
    }
    return result;
  };
  const sum = (): Polynomial => {
    let result = product();
    while (tokens[at] === "+" || tokens[at] === "-") {
      const sign = tokens[at++] === "+" ? 1 : -1;
      result = addScaled(result, product(), sign);
    }
    return result;
  };
  const result = sum();
  return at === tokens.length ? result : bad();
}

function addScaled(a: Polynomial, b: Polynomial, scale: number): Polynomial {
  const sum = new Map(a);
  for (const [monomial, coefficient] of b) {
    const total = (sum.get(monomial) ?? 0) + scale * coefficient;
    if (total === 0) sum.delete(monomial);
    else sum.set(monomial, total);
  }
  return sum;
}

const symbolsOf = (monomial: string): string[] => (monomial === "" ? [] : monomial.split("*"));

function multiply(a: Polynomial, b: Polynomial): Polynomial {
  let result: Polynomial = new Map();
  for (const [left, x] of a) {
    for (const [right, y] of b) {
      const monomial = [...symbolsOf(left), ...symbolsOf(right)].sort().join("*");
      result = addScaled(result, new Map([[monomial, x * y]]), 1);
    }
  }
  return result;
}

/** Products before sums of less, then by name; the constant last: "B*T+P-1". */
function terms(value: Polynomial): [string, number][] {
  return [...value].sort(([a], [b]) => {
    const byDegree = symbolsOf(b).length - symbolsOf(a).length;
    return byDegree !== 0 ? byDegree : a < b ? -1 : 1;
  });
}

function canonical(value: Polynomial): Dim {
  const ordered = terms(value);
  if (ordered.length === 0) return 0;
  if (ordered.length === 1 && ordered[0]![0] === "") return ordered[0]![1];
  let text = "";
  for (const [monomial, coefficient] of ordered) {
    const size = Math.abs(coefficient);
    const sign = coefficient < 0 ? "-" : text === "" ? "" : "+";
    text += sign + (monomial === "" ? `${size}` : size === 1 ? monomial : `${size}*${monomial}`);
  }
  parsed.set(text, value);
  return text;
}

/** The one spelling of a size; two sizes are equal exactly when their canonical forms are `===`. */
export function canonicalDim(dim: Dim): Dim {
  if (typeof dim === "number") {
    if (!Number.isInteger(dim) || dim < 0) throw new GraphError("BAD_ATTRIBUTE", `a size of ${dim} is not possible`);
    return dim;
  }
  return canonical(polynomial(dim));
}

export function mulDims(...dims: Dim[]): Dim {
  if (dims.every((dim) => typeof dim === "number")) return dims.reduce<number>((a, b) => a * (b as number), 1);
  return canonical(dims.map(polynomial).reduce(multiply, new Map([["", 1]])));
}

export function addDims(...dims: Dim[]): Dim {
  return canonical(dims.map(polynomial).reduce((a, b) => addScaled(a, b, 1), new Map<string, number>()));
}

export function subDims(a: Dim, b: Dim): Dim {
  return canonical(addScaled(polynomial(a), polynomial(b), -1));
}

export function dimsEqual(a: Dim, b: Dim): boolean {
  return a === b || canonical(polynomial(a)) === canonical(polynomial(b));
}

/** Exact quotient a / b, or undefined when b does not divide a. Polynomial long division by leading terms. */
export function divDims(a: Dim, b: Dim): Dim | undefined {
  const divisor = polynomial(b);
  const lead = terms(divisor)[0];
  if (lead === undefined) return undefined;
  let rest = polynomial(a);
  let quotient: Polynomial = new Map();
  while (rest.size > 0) {
    const top = terms(rest)[0]!;
    const symbols = symbolsOf(top[0]);
    for (const symbol of symbolsOf(lead[0])) {
      const found = symbols.indexOf(symbol);
      if (found < 0) return undefined;
      symbols.splice(found, 1);
    }
    if (top[1] % lead[1] !== 0) return undefined;
    const term = new Map([[symbols.join("*"), top[1] / lead[1]]]);
    quotient = addScaled(quotient, term, 1);
    rest = addScaled(rest, multiply(divisor, term), -1);
  }
  return canonical(quotient);
}

/** The terms of an expression as (coefficient, symbols), for evaluating it at run time. */
export function dimTerms(dim: Dim): readonly { coefficient: number; symbols: readonly string[] }[] {
  return terms(polynomial(dim)).map(([monomial, coefficient]) => ({ coefficient, symbols: symbolsOf(monomial) }));
}

/** Number of elements. */
export function sizeOf(shape: Shape): Dim {
  return mulDims(...shape);
}

export function shapesEqual(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}

export function formatShape(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

/**
 * NumPy broadcasting with symbols: a symbol fits itself and 1, nothing else.
 * @returns undefined when the shapes do not broadcast
 */
export function broadcastShapes(a: Shape, b: Shape): Shape | undefined {
  if (shapesEqual(a, b)) return a;
  const rank = Math.max(a.length, b.length);
  const result: Dim[] = [];
  for (let i = 0; i < rank; i++) {
    const left = a[i - rank + a.length] ?? 1;
    const right = b[i - rank + b.length] ?? 1;
    if (left === right || right === 1) result.push(left);
    else if (left === 1) result.push(right);
    else return undefined;
  }
  return result;
}
