/** @file Runs a backbone with an adapter over stored batches: the plain forward and backward pass, nothing around it. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, sep } from "node:path";
import { add, crossEntropy, exportOnnx, Graph, gather, grad } from "../../src/graph/index.ts";
import { ADAPTER_INPUT, type Adapter, buildMethod } from "../../src/methods/index.ts";
import type { Backbone } from "../../src/models/index.ts";
import { Session, Tensor } from "../../src/runtime/index.ts";

export const FIXTURES = new URL("../fixtures/", import.meta.url).pathname;

export function fixture<T>(...path: string[]): T {
  return JSON.parse(readFileSync(join(FIXTURES, ...path), "utf8")) as T;
}

/** Every `<method>/<case>/` of the fixtures that is an adapter directory with expected numbers. */
export function adapterCases(): { method: string; name: string }[] {
  return readdirSync(FIXTURES, { recursive: true, encoding: "utf8" })
    .map((path) => path.split(sep))
    .filter((parts) => parts.length === 3 && parts[2] === "expected.json")
    .map(([method, name]) => ({ method: method!, name: name! }))
    .filter(({ method, name }) => existsSync(join(FIXTURES, method, name, "adapter_config.json")));
}

export interface Batch {
  /** Right-padded, [B][T]. */
  readonly tokens: readonly (readonly number[])[];
  readonly promptLengths: readonly number[];
  /** Shifted labels, -100 where not supervised; without them no loss is computed. */
  readonly labels?: readonly (readonly number[])[];
}

export interface Pass {
  readonly logits: Float32Array; // [B · T, V]
  /** What the method reports and keeps, by name. */
  readonly values: ReadonlyMap<string, Float32Array>;
  readonly loss: number | undefined;
  readonly auxiliary: ReadonlyMap<string, number>;
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

/** The graph of passes in training form, ready to run; the adapter's numbers are read anew for each. */
export class Passes implements Disposable {
  readonly #session: Session;
  readonly #adapter: Adapter | undefined;
  readonly #supervised: boolean;
  readonly #reported: readonly string[];
  readonly #losses: readonly string[];

  /** @param supervised whether batches have labels: then also the loss and its gradients for every parameter */
  constructor(backbone: Backbone, adapter: Adapter | undefined, supervised: boolean) {
    const g = new Graph("parity");
    const tokens = g.input("tokens", "int64", ["B", "T"]);
    const promptMask = g.input("prompt_mask", "float32", ["B", "T"]);
    const method = adapter && buildMethod(g, adapter, { kind: "train", promptMask }, { derived: "inline" });
    const hooks = method && { hooks: method.hooks };
    const forward = backbone.forward(g, { tokens, attention: { kind: "full" }, ...hooks });
    g.output("logits", forward.logits(forward.hidden));
    const reported = [...(method?.state?.() ?? []), ...(method?.reports?.() ?? [])];
    for (const [name, value] of reported) g.output(name, value);
    const losses = [...(method?.losses?.() ?? [])];
    if (supervised) {
      const positions = g.input("positions", "int64", ["R"]);
      const labels = g.input("labels", "int64", ["R"]);
      const weights = g.input("weights", "float32", ["R"]);
      const { loss } = crossEntropy(forward.logits(gather(forward.hidden, positions, 0)), labels, weights);
      const total = losses.reduce((sum, [, value]) => add(sum, value), loss);
      g.output("loss", total);
      for (const [name, value] of losses) g.output(`aux:${name}`, value);
      const keys = [...(adapter?.tensors.keys() ?? [])];
      const gradients = grad(
        total,
        keys.map((key) => method!.parameter(key)),
      );
      for (const [i, value] of gradients.entries()) g.output(`grad:${keys[i]}`, value);
    }
    this.#session = Session.create(exportOnnx(g), { initializers: backbone.initializers() });
    this.#adapter = adapter;
    this.#supervised = supervised;
    this.#reported = reported.map(([name]) => name);
    this.#losses = losses.map(([name]) => name);
  }

  run(batch: Batch): Pass {
    const T = batch.tokens[0]!.length;
    const B = batch.tokens.length;
    const int64 = (values: readonly number[]) => BigInt64Array.from(values, BigInt);
    const mask = batch.promptLengths.flatMap((n) => Array.from({ length: T }, (_, t) => (t < n ? 1 : 0)));
    const given: Record<string, Tensor> = {
      tokens: Tensor.from("int64", [B, T], int64(batch.tokens.flat())),
      prompt_mask: Tensor.from("float32", [B, T], Float32Array.from(mask)),
    };
    if (this.#supervised) {
      const flatLabels = batch.labels!.flat();
      const rows = flatLabels.flatMap((label, row) => (label < 0 ? [] : [row]));
      given.positions = Tensor.from("int64", [rows.length], int64(rows));
      given.labels = Tensor.from("int64", [rows.length], int64(rows.map((row) => flatLabels[row]!)));
      given.weights = Tensor.from("float32", [rows.length], new Float32Array(rows.length).fill(1));
    }
    const feeds = this.#session.inputs.map(({ name }): [string, Tensor] => [
      name,
      name.startsWith(ADAPTER_INPUT) ? this.#adapter!.tensors.get(name.slice(ADAPTER_INPUT.length))! : given[name]!,
    ]);
    const results = this.#session.call(Object.fromEntries(feeds));
    const take = (name: string) => (results[name]!.data as Float32Array).slice();
    const keys = this.#supervised ? [...(this.#adapter?.tensors.keys() ?? [])] : [];
    const outcome: Pass = {
      logits: take("logits"),
      values: new Map(this.#reported.map((name) => [name, take(name)])),
      loss: this.#supervised ? take("loss")[0]! : undefined,
      auxiliary: new Map(this.#supervised ? this.#losses.map((name) => [name, take(`aux:${name}`)[0]!]) : []),
      gradients: new Map(keys.map((key) => [key, take(`grad:${key}`)])),
    };
    for (const tensor of [...Object.values(results), ...Object.values(given)]) tensor.dispose();
    return outcome;
  }

  [Symbol.dispose](): void {
    this.#session.dispose();
  }
}

/** One pass in training form; with labels also the loss and its gradients for every parameter of the adapter. */
export function pass(backbone: Backbone, adapter: Adapter | undefined, batch: Batch): Pass {
  using passes = new Passes(backbone, adapter, batch.labels !== undefined);
  return passes.run(batch);
}

/** The largest absolute difference between two lists of numbers; Infinity when their lengths differ. */
export function distance(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let most = 0;
  for (let i = 0; i < actual.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    if (!(difference <= most)) most = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
  }
  return most;
}
