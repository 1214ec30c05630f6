/** @file The graphs that generation runs, and the sessions made from them: one per method config, shared by its adapters. */
import {
  argmax,
  type Dim,
  exportOnnx,
  Graph,
  gather,
  gatherElements,
  logSoftmax,
  reshape,
  type Value,
} from "../graph/index.ts";
import { type Adapter, buildMethod, type Route } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { PrepackedWeights, Session } from "../runtime/index.ts";

/** Graph inputs and outputs of a method's state and reports begin with these. */
export const STATE = "state.";
export const REPORT = "report.";

/** A route that all rows of a batch take. */
export interface SharedRoute {
  readonly route: Route;
  /** Equal for equal routes only. */
  readonly key: string;
}

/**
 * What a graph is for.
 * - `prefill`: prompts → hidden states of chosen positions, KV cache, the method's state and reports.
 * - `decode`: one token a row → logits; no router. Under a `route` all rows share it.
 * - `head`: hidden states → logits and log-probabilities.
 * - `pick`: hidden states and target tokens → the targets' log-probabilities and the arg-max tokens.
 */
export type Program =
  | { readonly kind: "prefill"; readonly adapter: Adapter | undefined }
  | { readonly kind: "decode"; readonly adapter: Adapter | undefined; readonly route?: SharedRoute | undefined }
  | { readonly kind: "head" }
  | { readonly kind: "pick" };

/** A graph that knows which weights it reads; a session takes just these. */
export class ProgramGraph extends Graph {
  readonly weights = new Set<string>();

  override parameter(...[name, dtype, shape]: Parameters<Graph["parameter"]>): Value {
    this.weights.add(name);
    return super.parameter(name, dtype, shape);
  }
}

const GIVEN = { derived: "input" } as const;

/** Inputs of the in-place KV cache: where each sequence ends after the step (int32 [B]), and the longest (int32 []). */
function cachedAttention(graph: Graph) {
  return {
    kind: "cached",
    lastPositions: graph.input("lastPositions", "int32", ["B"]),
    totalLength: graph.input("totalLength", "int32", []),
  } as const;
}

function buildPrefill(backbone: Backbone, adapter: Adapter | undefined): ProgramGraph {
  const graph = new ProgramGraph("prefill");
  const tokens = graph.input("tokens", "int64", ["B", "T"]);
  const rows = graph.input("rows", "int64", ["R"]); // positions whose hidden states are wanted, as rows of [B·T]
  const attention = cachedAttention(graph);
  const method =
    adapter &&
    buildMethod(
      graph,
      adapter,
      { kind: "prefill", promptMask: graph.input("promptMask", "float32", ["B", "T"]) },
      GIVEN,
    );
  const { hidden } = backbone.forward(graph, { tokens, attention, ...(method && { hooks: method.hooks }) });
  graph.output("hidden", gather(hidden, rows, 0)); // [R, d]
  for (const [name, value] of method?.state?.() ?? []) graph.output(STATE + name, value);
  for (const [name, value] of method?.reports?.() ?? []) graph.output(REPORT + name, value);
  return graph;
}

function buildDecode(backbone: Backbone, adapter: Adapter | undefined, route: Route | undefined): ProgramGraph {
  const graph = new ProgramGraph("decode");
  const tokens = graph.input("tokens", "int64", ["B", 1]);
  const attention = cachedAttention(graph);
  const method =
    adapter &&
    buildMethod(
      graph,
      adapter,
      {
        kind: "decode",
        state: (name, shape) => graph.input(STATE + name, "float32", ["B", ...shape]),
        ...(route && { route }),
      },
      GIVEN,
    );
  const { hidden, logits } = backbone.forward(graph, { tokens, attention, ...(method && { hooks: method.hooks }) });
  const scores = logits(hidden);
  graph.output("logits", scores); // [B, V]
  graph.output("logProbs", logSoftmax(scores, -1)); // [B, V]
  return graph;
}

/** The head needs the rest of the backbone only to be handed out; what its outputs do not reach is not exported. */
function buildHead(backbone: Backbone, kind: "head" | "pick"): ProgramGraph {
  const graph = new ProgramGraph(kind);
  const { logits } = backbone.forward(graph, {
    tokens: graph.input("tokens", "int64", ["B", "T"]),
    attention: { kind: "full" },
  });
  graph.weights.clear();
  const scores = logits(graph.input("hidden", "float32", ["R", backbone.config.hiddenSize])); // [R, V]
  const logProbs = logSoftmax(scores, -1);
  if (kind === "head") {
    graph.output("logits", scores);
    graph.output("logProbs", logProbs);
  } else {
    const targets = reshape(graph.input("targets", "int64", ["R"]), ["R", 1]);
    graph.output("picked", reshape(gatherElements(logProbs, targets, 1), ["R"])); // [R]
    graph.output("best", argmax(scores, -1)); // [R]
  }
  return graph;
}

/** Builds the graph of a program. Exported for tests, which look for what must not be in it. */
export function buildProgram(backbone: Backbone, program: Program): ProgramGraph {
  if (program.kind === "prefill") return buildPrefill(backbone, program.adapter);
  if (program.kind === "decode") return buildDecode(backbone, program.adapter, program.route?.route);
  return buildHead(backbone, program.kind);
}

const adapterKeys = new WeakMap<Adapter, string>();

/** What decides an adapter's graph: method and config. */
function adapterKey(adapter: Adapter | undefined): string {
  if (!adapter) return "";
  let key = adapterKeys.get(adapter);
  if (key === undefined) {
    key = JSON.stringify([adapter.method.name, adapter.config]);
    adapterKeys.set(adapter, key);
  }
  return key;
}

function keyOf(program: Program): string {
  if (program.kind === "head" || program.kind === "pick") return program.kind;
  const route = program.kind === "decode" ? program.route?.key : undefined;
  return [program.kind, adapterKey(program.adapter), route ?? ""].join("|");
}

/** Decode steps after which a route gets a session of its own. */
const HOT_STEPS = 64;
const REMEMBERED_ROUTES = 1024;

interface Entry {
  readonly session: Session;
  uses: number;
  readonly specialised: boolean;
}

/** A session in use. It stays open at least until it is given back. */
export interface Lease extends Disposable {
  readonly session: Session;
}

export interface SessionCacheOptions {
  /** Sessions specialised by route that are kept; the least recently used unused ones go. */
  readonly routes: number;
  /** Passed to every session, e.g. profiling. */
  readonly session?: Parameters<typeof Session.create>[1];
}

/**
 * Sessions by program. Adapter tensors are inputs, so all adapters of one method config share a session; backbone
 * weights are initializers that all sessions share, in prepacked form too.
 */
export class SessionCache implements Disposable {
  readonly #backbone: Backbone;
  readonly #options: SessionCacheOptions;
  readonly #prepacked = new PrepackedWeights();
  /** Least recently used first. */
  readonly #entries = new Map<string, Entry>();
  /** Decode steps by route that has no session of its own; least recently used first. */
  readonly #steps = new Map<string, number>();

  constructor(backbone: Backbone, options: SessionCacheOptions) {
    this.#backbone = backbone;
    this.#options = options;
  }

  /** Number of open sessions. */
  get size(): number {
    return this.#entries.size;
  }

  /**
   * Counts a step under a route, and says whether the route has a session of its own or has been used so much that
   * making one pays.
   */
  isHot(adapter: Adapter, route: SharedRoute): boolean {
    if (this.#options.routes === 0) return false;
    const key = keyOf({ kind: "decode", adapter, route });
    if (this.#entries.has(key)) return true;
    const steps = (this.#steps.get(key) ?? 0) + 1;
    this.#steps.delete(key);
    this.#steps.set(key, steps);
    if (this.#steps.size > REMEMBERED_ROUTES) {
      for (const oldest of this.#steps.keys()) {
        this.#steps.delete(oldest);
        break;
      }
    }
    return steps > HOT_STEPS;
  }

  lease(program: Program): Lease {
    const key = keyOf(program);
    let entry = this.#entries.get(key);
    if (entry) {
      this.#entries.delete(key); // to be put at the end again
    } else {
      const specialised = program.kind === "decode" && program.route !== undefined;
      if (specialised) this.#evict();
      const graph = buildProgram(this.#backbone, program);
      const initializers = [...this.#backbone.initializers()].filter(([name]) => graph.weights.has(name));
      const session = Session.create(exportOnnx(graph), {
        initializers: new Map(initializers),
        prepacked: this.#prepacked,
        // A plan of the memory is kept for every shape that was ever run, and prompts have ever new ones.
        memoryPattern: program.kind !== "prefill" && program.kind !== "pick",
        ...this.#options.session,
      });
      entry = { session, uses: 0, specialised };
    }
    this.#entries.set(key, entry);
    entry.uses++;
    let returned = false;
    const held = entry;
    return {
      session: held.session,
      [Symbol.dispose]() {
        if (!returned) held.uses--;
        returned = true;
      },
    };
  }

  /** Closes the longest unused specialised session when there are as many as are kept. */
  #evict(): void {
    const specialised = [...this.#entries].filter(([, entry]) => entry.specialised);
    if (specialised.length < this.#options.routes) return;
    const oldest = specialised.find(([, entry]) => entry.uses === 0);
    if (!oldest) return;
    this.#entries.delete(oldest[0]);
    oldest[1].session.dispose();
  }

  [Symbol.dispose](): void {
    for (const { session } of this.#entries.values()) session.dispose();
    this.#entries.clear();
    this.#prepacked[Symbol.dispose]();
  }
}

/** A tensor's shape with its symbols replaced, e.g. `B` by the number of rows. */
export function resolveShape(shape: readonly Dim[], sizes: Readonly<Record<string, number>>): number[] {
  return shape.map((dim) => (typeof dim === "number" ? dim : (sizes[dim] ?? Number.NaN)));
}
