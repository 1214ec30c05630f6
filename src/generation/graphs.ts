/** @file The graphs that generation runs, and the sessions made from them: one per method config, shared by its adapters. */
import {
  argmax,
  exportOnnx,
  Graph,
  gather,
  gatherElements,
  logSoftmax,
  mulDims,
  reshape,
  type Value,
} from "../graph/index.ts";
import { type Adapter, buildMethod, type MethodGraph, type Route } from "../methods/index.ts";
import type { Backbone, Hooks } from "../models/index.ts";
import { type DeviceName, PrepackedWeights, Session } from "../runtime/index.ts";
import { watched } from "./attention.ts";
import { GenerationError } from "./errors.ts";
import { type ItemKinds, itemHooks, promptItems } from "./mixed-graph.ts";

/** Graph inputs and outputs of a method's state and reports begin with these. */
export const STATE = "state.";
export const REPORT = "report.";

/** A route that all rows of a batch take. */
export interface SharedRoute {
  readonly route: Route;
  /** Equal for equal routes only. */
  readonly key: string;
}

/** A part of a pass over prompts: the whole of it in one run where there is none. */
export interface PrefillPart {
  /** Layers `from` … `to` - 1: `stream` and `next` [B, T, d] hand the residual stream from stage to stage. Default: all. */
  readonly layers?: { readonly from: number; readonly to: number };
  /** Tokens that go on from what the cache has of the sequence, which is one: the attention prefix is not put in again. */
  readonly continued?: boolean;
  /** Whose routers' attention over the prompts is reported too: that of the adapter that all prompts have. */
  readonly watched?: Adapter | undefined;
}

/**
 * What a graph is for.
 * - `prefill`: prompts → hidden states of chosen positions, KV cache, the method's state and reports; or a part of that.
 * - `mixedPrefill`: the same for prompts of many adapters, whose methods have the form of items and among whose routers
 *   none has more than so many experts; under milora's operators only.
 * - `decode`: one token a row → logits; no router. Under a `route` all rows share it.
 * - `mixed`: the same for rows of many adapters, whose methods have the form of items.
 * - `derive`: an adapter's tensors → those that follow from them and the frozen weights alone.
 * - `head`: hidden states → logits and log-probabilities.
 * - `pick`: hidden states and target tokens → the targets' log-probabilities and the arg-max tokens.
 */
export type Program =
  | { readonly kind: "prefill"; readonly adapter: Adapter | undefined; readonly part?: PrefillPart }
  | { readonly kind: "mixedPrefill"; readonly experts: number; readonly part?: PrefillPart }
  | { readonly kind: "decode"; readonly adapter: Adapter | undefined; readonly route?: SharedRoute | undefined }
  | { readonly kind: "mixed"; readonly items: ItemKinds }
  | { readonly kind: "derive"; readonly adapter: Adapter }
  | { readonly kind: "head"; readonly adapter: Adapter | undefined }
  | { readonly kind: "pick"; readonly adapter: Adapter | undefined };

/** Prefill and decoding are given what was derived from the adapter once. */
const GIVEN = { derived: "input" } as const;

/** Inputs of the in-place KV cache: where each sequence ends after the step (int32 [B]), and the longest (int32 []). */
function cachedAttention(graph: Graph, halves: boolean) {
  return {
    kind: "cached",
    halves,
    lastPositions: graph.input("lastPositions", "int32", ["B"]),
    totalLength: graph.input("totalLength", "int32", []),
  } as const;
}

type PrefillProgram = Extract<Program, { readonly kind: "prefill" | "mixedPrefill" }>;

/** What a pass over prompts has besides the backbone. */
function prefillMethod(graph: Graph, backbone: Backbone, program: PrefillProgram, promptMask: Value) {
  if (program.kind === "mixedPrefill") return promptItems(graph, backbone, promptMask, program.experts);
  return program.adapter && buildMethod(graph, program.adapter, { kind: "prefill", promptMask }, GIVEN);
}

function buildPrefill(graph: Graph, backbone: Backbone, program: PrefillProgram, halves: boolean): Graph {
  const { layers, continued } = program.part ?? {};
  const { hiddenSize: d, numLayers } = backbone.config;
  const { from, to } = layers ?? { from: 0, to: numLayers };
  // Sizes are read from the first input that has them, so from one that is there at run time.
  const stream =
    from > 0 ? reshape(graph.input("stream", "float32", ["B", "T", d]), [mulDims("B", "T"), d]) : undefined;
  const tokens = graph.input("tokens", "int64", ["B", "T"]);
  const attention = cachedAttention(graph, halves);
  const promptMask = graph.input("promptMask", "float32", ["B", "T"]);
  const built: MethodGraph | undefined = prefillMethod(graph, backbone, program, promptMask);
  const method = watched(graph, built, program.part?.watched, promptMask);
  const { prefix, ...others } = method?.hooks ?? {};
  const hooks: Hooks = prefix && !continued ? { ...others, prefix } : others;
  const range = { from, to, ...(stream && { hidden: stream }) };
  const { hidden } = backbone.forward(graph, { tokens, attention, hooks, layers: range });
  if (to < numLayers) {
    graph.output("next", reshape(hidden, ["B", "T", d]));
  } else {
    const rows = graph.input("rows", "int64", ["R"]); // positions whose hidden states are wanted, as rows of [B·T]
    graph.output("hidden", gather(hidden, rows, 0)); // [R, d]
  }
  for (const [name, value] of method?.state?.() ?? []) graph.output(STATE + name, value);
  for (const [name, value] of method?.reports?.() ?? []) graph.output(REPORT + name, value);
  return graph;
}

function buildDecode(
  graph: Graph,
  backbone: Backbone,
  { adapter, route }: Extract<Program, { readonly kind: "decode" }>,
  halves: boolean,
): Graph {
  const state = (name: string, shape: readonly number[]) => graph.input(STATE + name, "float32", ["B", ...shape]);
  const method =
    adapter && buildMethod(graph, adapter, { kind: "decode", state, ...(route && { route: route.route }) }, GIVEN);
  const { prefix: _inTheCache, ...hooks } = method?.hooks ?? {};
  return decodeWith(backbone, graph, hooks, halves);
}

function buildMixed(graph: Graph, backbone: Backbone, items: ItemKinds, halves: boolean): Graph {
  return decodeWith(backbone, graph, itemHooks(graph, backbone, items), halves);
}

/** One token a row. */
function decodeWith(backbone: Backbone, graph: Graph, hooks: Hooks, halves: boolean): Graph {
  const tokens = graph.input("tokens", "int64", ["B", 1]);
  const attention = cachedAttention(graph, halves);
  const { hidden, logits } = backbone.forward(graph, { tokens, attention, hooks });
  const scores = logits(hidden);
  graph.output("logits", scores); // [B, V]
  graph.output("logProbs", logSoftmax(scores, -1)); // [B, V]
  return graph;
}

/** Its outputs are just what the method derives; of the rest nothing is exported. */
function buildDerive(graph: Graph, backbone: Backbone, adapter: Adapter): Graph {
  const tokens = graph.input("tokens", "int64", ["B", "T"]);
  const promptMask = graph.input("promptMask", "float32", ["B", "T"]);
  const { hooks } = buildMethod(graph, adapter, { kind: "prefill", promptMask }, { derived: "output" });
  backbone.forward(graph, { tokens, attention: { kind: "full" }, hooks });
  return graph;
}

/** The head needs the rest of the backbone only to be handed out; what its outputs do not reach is not exported. */
function buildHead(graph: Graph, backbone: Backbone, kind: "head" | "pick", adapter: Adapter | undefined): Graph {
  const promptMask = graph.input("promptMask", "float32", ["B", "T"]);
  const method = adapter?.method.changesHead && buildMethod(graph, adapter, { kind: "prefill", promptMask }, GIVEN);
  const { logits } = backbone.forward(graph, {
    tokens: graph.input("tokens", "int64", ["B", "T"]),
    attention: { kind: "full" },
    ...(method && { hooks: method.hooks }),
  });
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
export function buildProgram(
  backbone: Backbone,
  program: Program,
  { device = "cpu", halves = false }: { readonly device?: DeviceName; readonly halves?: boolean } = {},
): Graph {
  const graph = new Graph(program.kind, device);
  switch (program.kind) {
    case "prefill":
    case "mixedPrefill":
      return buildPrefill(graph, backbone, program, halves);
    case "decode":
      return buildDecode(graph, backbone, program, halves);
    case "mixed":
      return buildMixed(graph, backbone, program.items, halves);
    case "derive":
      return buildDerive(graph, backbone, program.adapter);
    default:
      return buildHead(graph, backbone, program.kind, program.adapter);
  }
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

/** What decides how attention is computed, so that adapters of many configs share a graph of items. */
function watchedKey({ method, config }: Adapter): string {
  return `watched ${method.name} ${method.routing?.(config).pooler}`;
}

function partKey({ layers, continued, watched }: PrefillPart, adapter?: Adapter): string {
  // Only an attention prefix makes a difference between a beginning and what goes on from it.
  const goesOn = continued && adapter?.method.prefixLength !== undefined;
  const span = layers ? `${layers.from}-${layers.to}` : "";
  return [span, goesOn ? "continued" : "", watched ? watchedKey(watched) : ""].join("");
}

function keyOf(program: Program): string {
  if (program.kind === "mixed") return ["mixed", ...program.items].join("|");
  if (program.kind === "mixedPrefill") return [program.kind, program.experts, partKey(program.part ?? {})].join("|");
  const isHead = program.kind === "head" || program.kind === "pick";
  if (isHead && !program.adapter?.method.changesHead) return program.kind;
  const route = program.kind === "decode" ? program.route?.key : undefined;
  const part = program.kind === "prefill" ? partKey(program.part ?? {}, program.adapter) : "";
  return [program.kind, adapterKey(program.adapter), route ?? "", part].join("|");
}

/** Decode steps after which a route gets a session of its own. */
const HOT_STEPS = 64;
const REMEMBERED_ROUTES = 1024;

/** What sessions are kept in turn with: those of single routes, of layers of long prompts, and all others. */
type Pool = "routes" | "stages" | "configs";

/** Method configs whose stages are kept, and how many other sessions are; of each config there are two or three. */
const STAGED_CONFIGS = 8;
const CONFIGS = 192;

function poolOf(program: Program): Pool {
  if (program.kind === "decode" && program.route !== undefined) return "routes";
  return "part" in program && program.part?.layers !== undefined ? "stages" : "configs";
}

interface Entry {
  readonly making: Promise<Session>;
  /** Once it is there; before that it is in use. */
  made: Session | undefined;
  uses: number;
  readonly pool: Pool;
}

/** A session in use. It stays open at least until it is given back. */
export interface Lease extends Disposable {
  readonly session: Session;
}

export interface SessionCacheOptions {
  /** Sessions specialised by route that are kept; the least recently used unused ones go. */
  readonly routes: number;
  /** Where they run; default: cpu. */
  readonly device?: DeviceName | undefined;
  /** Key-value caches are float16, see `AttentionMode`. */
  readonly halves?: boolean;
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
  /** By what decides an adapter's graph. */
  readonly #derives = new Map<string, boolean>();
  #closed = false;

  constructor(backbone: Backbone, options: SessionCacheOptions) {
    this.#backbone = backbone;
    this.#options = options;
  }

  /** Where they run. */
  get device(): DeviceName {
    return this.#options.device ?? "cpu";
  }

  /** Number of open sessions, and of those in the making. */
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

  /** Whether something is to be computed from an adapter's tensors and the frozen weights alone. */
  derives(adapter: Adapter): boolean {
    const key = adapterKey(adapter);
    const known =
      this.#derives.get(key) ?? buildProgram(this.#backbone, { kind: "derive", adapter }).outputs.length > 0;
    this.#derives.set(key, known);
    return known;
  }

  /** A program's session, which is made when there is none; others go on meanwhile. */
  async lease(program: Program): Promise<Lease> {
    this.#requireOpen();
    const key = keyOf(program);
    let entry = this.#entries.get(key);
    if (entry) {
      this.#entries.delete(key); // to be put at the end again
    } else {
      const pool = poolOf(program);
      this.#evict(pool);
      entry = { making: this.#make(program), made: undefined, uses: 0, pool };
    }
    this.#entries.set(key, entry);
    entry.uses++;
    const held = entry;
    try {
      held.made = await held.making;
    } catch (error) {
      if (this.#entries.get(key) === held) this.#entries.delete(key);
      throw error;
    }
    if (this.#closed) held.made.dispose();
    this.#requireOpen();
    let returned = false;
    return {
      session: held.made,
      [Symbol.dispose]() {
        if (!returned) held.uses--;
        returned = true;
      },
    };
  }

  async #make(program: Program): Promise<Session> {
    const { halves = false } = this.#options;
    const graph = buildProgram(this.#backbone, program, { device: this.device, halves });
    const making = Session.createAsync(exportOnnx(graph), {
      device: this.device,
      initializers: this.#backbone.initializers(), // asked for after the graph: a graph may add to them
      prepacked: this.#prepacked,
      // A plan of the memory is kept for every shape that was ever run, and prompts and items have ever new ones.
      memoryPattern: !["prefill", "mixedPrefill", "pick", "mixed"].includes(program.kind),
      // There is a session for every method config and every stage, and they run one after another.
      sharedArena: program.kind === "prefill" || program.kind === "mixedPrefill",
      ...this.#options.session,
    });
    return this.#backbone.whilePacking(making);
  }

  #requireOpen(): void {
    if (this.#closed) throw new GenerationError("ENGINE_CLOSED", "the engine was disposed; create a new one");
  }

  /** Closes the longest unused session of a pool when there are as many as are kept. */
  #evict(pool: Pool): void {
    const kept = {
      routes: this.#options.routes,
      stages: STAGED_CONFIGS * this.#backbone.config.numLayers,
      configs: CONFIGS,
    };
    const alike = [...this.#entries].filter(([, entry]) => entry.pool === pool);
    if (alike.length < kept[pool]) return;
    const oldest = alike.find(([, entry]) => entry.uses === 0);
    if (!oldest) return;
    this.#entries.delete(oldest[0]);
    oldest[1].made?.dispose();
  }

  /** Sessions in the making are closed when they are there. */
  [Symbol.dispose](): void {
    this.#closed = true;
    for (const { made } of this.#entries.values()) made?.dispose();
    this.#entries.clear();
    this.#prepacked[Symbol.dispose]();
  }
}
