/** @file How the graph of a pass over prompts gets what their adapters do: the method itself, or items for all of them. */
import { ADAPTER_INPUT, type Adapter, type LoweredModule } from "../methods/index.ts";
import { type Binding, operators, type Session, Tensor } from "../runtime/index.ts";
import type { PreparedAdapter } from "./derived.ts";
import type { PrefillPart, Program } from "./graphs.ts";
import { ITEM_WIDTH, itemTable, ROUTER_WIDTH, ROUTERS } from "./mixed-graph.ts";
import { ITEM, type PackedAdapter } from "./packed-adapter.ts";
import type { Span } from "./slices.ts";

/** A prompt of a pass. */
export interface PassPrompt {
  readonly adapter: PreparedAdapter;
  readonly tokens: readonly number[];
}

/** An output of a pass for some prompts, float32 [rows, layers, …]. */
export interface MethodOutput {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export interface Pass {
  /** Of some layers and tokens, or of all in one. */
  program(part: PrefillPart | undefined): Program;
  /**
   * Binds everything of the adapters for a run over some tokens of each prompt.
   * @returns what was made for it, to be disposed after the run
   */
  bind(session: Session, binding: Binding, tokens: Span): Tensor[];
  /** What of an output is a prompt's, as a copy [1, layers, …]; undefined where its adapter has no such thing. */
  outputOf(row: number, output: MethodOutput): MethodOutput | undefined;
}

/** Whether prompts of an adapter are likely to be read together with those of others: its method allows it. */
export function joinsOthers(adapter: Adapter | undefined): boolean {
  if (operators() === undefined) return false;
  return adapter === undefined || (adapter.method.lower !== undefined && adapter.method.prefixLength === undefined);
}

/** Whether they are. Of an attention prefix, and of inputs that are scaled, items of prompts know nothing. */
export function takesItems({ adapter, lowered }: PreparedAdapter): boolean {
  return joinsOthers(adapter) && lowered !== undefined && !scalesInputs(lowered);
}

export function scalesInputs(lowered: readonly LoweredModule[]): boolean {
  return lowered.some(({ inputScale }) => inputScale);
}

/**
 * @param prompts of one adapter, or of any that all take items
 * @param watched the attention of routers is reported, too: all prompts are of one adapter
 */
export function passOf(prompts: readonly PassPrompt[], watched = false): Pass {
  const { adapter } = prompts[0]!;
  const bare = prompts.every((prompt) => prompt.adapter.adapter === undefined);
  return bare || !takesItems(adapter) ? methodPass(adapter, watched) : itemPass(prompts, watched);
}

function methodPass(prepared: PreparedAdapter, watched: boolean): Pass {
  const { adapter } = prepared;
  return {
    program: (part) => ({ kind: "prefill", adapter, part: { ...part, watched: watched ? adapter : undefined } }),
    bind(session, binding) {
      prepared.bind(session, binding);
      return [];
    },
    outputOf: rowOf,
  };
}

function itemPass(prompts: readonly PassPrompt[], watched: boolean): Pass {
  const experts = Math.max(...prompts.map(({ adapter }) => adapter.packed?.experts ?? 0));
  const { adapter } = prompts[0]!.adapter;
  return {
    program: (part) => ({ kind: "mixedPrefill", experts, part: { ...part, watched: watched ? adapter : undefined } }),
    bind(session, binding, tokens) {
      const made = bindItems(prompts, experts, session, binding, tokens);
      if (experts > 0) made.push(bindRouters(prompts, binding));
      if (watched) made.push(...bindParameters(prompts[0]!.adapter, session, binding));
      return made;
    },
    outputOf(row, output) {
      const own = prompts[row]!.adapter.packed?.experts ?? 0;
      if (own === 0) return undefined;
      return own === experts ? rowOf(row, output) : columnsOf(rowOf(row, output), own);
    },
  };
}

function rowOf(row: number, { shape: [rows, ...rest], data }: MethodOutput): MethodOutput {
  const size = data.length / rows!;
  return { shape: [1, ...rest], data: data.slice(row * size, (row + 1) * size) };
}

/** The first columns of the last axis. */
function columnsOf({ shape, data }: MethodOutput, columns: number): MethodOutput {
  const width = shape.at(-1)!;
  if (width === columns) return { shape, data };
  return { shape: [...shape.slice(0, -1), columns], data: data.filter((_, i) => i % width < columns) };
}

/** Binds the table of each group of modules: an item for each module and prompt that has tokens among these. */
function bindItems(
  prompts: readonly PassPrompt[],
  experts: number,
  session: Session,
  binding: Binding,
  { from, to }: Span,
): Tensor[] {
  const tables = new Map<string, { item: BigInt64Array; row: number; rows: number; expert: number }[]>();
  for (const { name } of session.inputs) if (name.startsWith("items.")) tables.set(name, []);
  for (const [index, { adapter, tokens }] of prompts.entries()) {
    const rows = Math.min(to, tokens.length) - from;
    if (rows <= 0) continue;
    for (const { item, group, expert } of adapter.packed?.modules ?? []) {
      const gate = expert === undefined ? -1 : index * experts + expert;
      if (item) tables.get(itemTable(group))?.push({ item, row: index * (to - from), rows, expert: gate });
    }
  }
  const count = [...tables.values()].reduce((sum, { length }) => sum + length, 0);
  const all = Tensor.allocate("int64", [count, ITEM_WIDTH]);
  const made = [all];
  const numbers = all.data as BigInt64Array;
  let at = 0;
  for (const [name, items] of tables) {
    const view = all.view(at * ITEM_WIDTH, [items.length, ITEM_WIDTH]);
    made.push(view);
    binding.input(name, view);
    for (const { item, row, rows, expert } of items) {
      const place = at++ * ITEM_WIDTH;
      numbers.set(item, place);
      numbers[place + ITEM.row] = BigInt(row);
      numbers[place + ITEM.rows] = BigInt(rows);
      numbers[place + ITEM.expert] = BigInt(expert);
    }
  }
  return made;
}

/** Parameters of packed adapters that graphs of items have taken as they are, by the names of inputs. */
const taken = new WeakMap<PackedAdapter, Map<string, Float32Array>>();

/** Binds the few parameters that a graph of items takes as they are. Numbers that are in a file are read once. */
function bindParameters({ adapter, packed }: PreparedAdapter, session: Session, binding: Binding): Tensor[] {
  if (!adapter || !packed) return [];
  const known = taken.get(packed) ?? new Map<string, Float32Array>();
  taken.set(packed, known);
  const made: Tensor[] = [];
  for (const { name, shape } of session.inputs) {
    if (!name.startsWith(ADAPTER_INPUT)) continue;
    const values = known.get(name) ?? adapter.values(name.slice(ADAPTER_INPUT.length)).slice();
    known.set(name, values);
    const tensor = Tensor.from("float32", shape.map(Number), values);
    made.push(tensor);
    binding.input(name, tensor);
  }
  adapter.closeFile();
  return made;
}

/** Binds the routers of all prompts; a prompt without any gets zeros. */
function bindRouters(prompts: readonly PassPrompt[], binding: Binding): Tensor {
  const layers = Math.max(...prompts.map(({ adapter }) => (adapter.packed?.routers.length ?? 0) / ROUTER_WIDTH));
  const table = Tensor.allocate("int64", [layers, prompts.length, ROUTER_WIDTH]);
  const numbers = (table.data as BigInt64Array).fill(0n);
  for (const [index, { adapter }] of prompts.entries()) {
    const routers = adapter.packed?.routers;
    if (!routers?.length) continue;
    for (let layer = 0; layer < layers; layer++) {
      const router = routers.subarray(layer * ROUTER_WIDTH, (layer + 1) * ROUTER_WIDTH);
      numbers.set(router, (layer * prompts.length + index) * ROUTER_WIDTH);
    }
  }
  binding.input(ROUTERS, table);
  return table;
}
