/** @file Steps of a batch: which rows run together in which session, and the bindings of those sessions. */
import { type Binding, operators, Tensor } from "../runtime/index.ts";
import { bindCache, type KvCache } from "./cache.ts";
import { type Lease, type Program, type SharedRoute, STATE } from "./graphs.ts";
import { ItemTables } from "./item-tables.ts";
import { ItemCopies, type Items } from "./items.ts";
import { sessionKinds } from "./mixed-graph.ts";
import type { Resident } from "./residents.ts";
import { commonRoute, type RowRoute } from "./routes.ts";
import type { Shared } from "./shared.ts";

/** A sequence that decodes. */
export interface Row {
  readonly resident: Resident;
  readonly route: RowRoute | undefined;
  /** Tokens of its prompt that did not have to be read. */
  readonly reused: number;
  /** Positions taken in the cache: the method's prefix and the tokens. */
  length: number;
}

/** Rows next to each other that one session steps. */
interface Run {
  readonly first: number;
  readonly rows: number;
  /** Whose rows they are; undefined: of several, by items. */
  readonly resident: Resident | undefined;
  /** The route that all of them take. */
  readonly common?: SharedRoute | undefined;
}

/** A session with the tensors of its rows bound. */
interface Bound {
  readonly resident: Resident | undefined;
  readonly binding: Binding;
  readonly lease: Lease;
  /** Made for this binding. */
  readonly views: readonly Tensor[];
  readonly totalLength: Tensor; // int32 []
}

/** Bindings that are kept while unused. */
const KEPT = 4;

/** What the rows of a batch have in tensors. */
export interface RowTensors {
  readonly cache: KvCache;
  readonly logits: Tensor; // [maxRows, V]
  readonly logProbs: Tensor; // [maxRows, V]
  /** The method's state of a name and shape for rows, float32 [rows, …shape]: a view that the caller disposes. */
  state(name: string, shape: readonly number[], first: number, rows: number): Tensor;
}

/** Steps rows, each under its adapter. */
export class Steps implements Disposable {
  readonly #shared: Shared;
  readonly #maxRows: number;
  readonly #tensors: RowTensors;
  readonly #tokens: Tensor; // int64 [maxRows, 1]
  readonly #lastPositions: Tensor; // int32 [maxRows]
  /** How the rows are stepped, until they change. */
  #runs: readonly Run[] | undefined;
  readonly #bound = new Map<string, Bound>();
  #items: Items | undefined;
  /** Of the cache, when the bindings were last looked through. */
  #version = 0;

  constructor(shared: Shared, maxRows: number, tensors: RowTensors) {
    this.#shared = shared;
    this.#maxRows = maxRows;
    this.#tensors = tensors;
    this.#tokens = Tensor.allocate("int64", [maxRows, 1]);
    this.#lastPositions = Tensor.allocate("int32", [maxRows]);
  }

  /** Feeds row i the token `tokens[i]`; the cache has room. */
  async run(rows: readonly Row[], tokens: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    const feed = this.#tokens.data as BigInt64Array;
    const last = this.#lastPositions.data as Int32Array;
    for (const [index, row] of rows.entries()) {
      feed[index] = BigInt(tokens[index]!);
      last[index] = row.length++;
    }
    const { runner } = this.#shared;
    const { version } = this.#tensors.cache;
    if (version !== this.#version) this.release();
    this.#version = version;
    const used = new Set<Bound>();
    this.#runs ??= this.#plan(rows);
    for (const run of this.#runs) {
      const bound = await (run.resident ? this.#bindRun(run.resident, run) : this.#bindItems(run));
      used.add(bound);
      const lengths = rows.slice(run.first, run.first + run.rows).map(({ length }) => length);
      (bound.totalLength.data as Int32Array)[0] = Math.max(...lengths);
      await runner.run(bound.lease.session, bound.binding, run.rows, signal);
    }
    // Rows that leave and others that join soon bring the same shapes again.
    const idle = [...this.#bound.values()].filter((bound) => !used.has(bound));
    const gone = new Set(idle.slice(0, Math.max(0, idle.length - KEPT)));
    if (gone.size > 0) this.#unbind((bound) => gone.has(bound));
  }

  /** Bytes that were copied of adapters for rows of several, which a step of them reads. */
  get itemBytes(): number {
    return this.#items?.bytes ?? 0;
  }

  /** Says that rows have come, gone or changed places. */
  changed(): void {
    this.#runs = undefined;
  }

  /** Gives back what was made for an adapter; without one everything, because the cache moves. */
  release(resident?: Resident): void {
    this.#unbind((bound) => resident === undefined || bound.resident === resident);
    if (!resident || !this.#items?.left(resident)) return;
    this.#unbind((bound) => bound.resident === undefined);
    this.#items[Symbol.dispose]();
    this.#items = undefined;
  }

  [Symbol.dispose](): void {
    this.release();
    this.#items?.[Symbol.dispose]();
    this.#tokens.dispose();
    this.#lastPositions.dispose();
  }

  /** Finds out which rows run together, and gives those of several adapters their items. */
  #plan(rows: readonly Row[]): Run[] {
    const shared = mixedRange(rows);
    const runs = runsOf(rows);
    if (!shared) return runs;
    const { first, end } = shared;
    this.#items ??= new (operators() ? ItemTables : ItemCopies)(this.#shared.backbone, this.#maxRows);
    const { state } = this.#tensors;
    this.#items.update(rows.slice(first, end), (row) => {
      const { adapter } = rows[first + row]!.resident;
      const routing = adapter?.method.routing?.(adapter.config);
      if (!routing) return undefined;
      using gates = state("gates", [this.#shared.backbone.config.numLayers, routing.experts.length], first + row, 1);
      return (gates.data as Float32Array).slice();
    });
    // Rows among them whose methods have no items pass as the bare backbone; their own run, which comes after, writes
    // over what that left in the cache and in the logits.
    const mixed = { first, rows: end - first, resident: undefined };
    return [mixed, ...runs.filter(({ resident }) => !resident!.lowered)];
  }

  #bindRun(resident: Resident, run: Run): Promise<Bound> {
    const { sessions } = this.#shared;
    const { adapter } = resident;
    const route = run.common && sessions.isHot(adapter!, run.common) ? run.common : undefined;
    const key = [run.first, run.rows, resident.id, route?.key].join("|");
    return this.#bind(key, run, { kind: "decode", adapter, route });
  }

  async #bindItems(run: Run): Promise<Bound> {
    const items = sessionKinds(this.#items!.kinds);
    const key = [run.first, run.rows, ...items].join("|");
    const bound = await this.#bind(key, run, { kind: "mixed", items });
    this.#items!.bind(bound.binding, items);
    return bound;
  }

  /** The binding of a run's rows, made anew only when they, the cache or the session have changed. */
  async #bind(key: string, { first, rows, resident }: Run, program: Program): Promise<Bound> {
    const known = this.#bound.get(key);
    if (known) {
      this.#bound.delete(key); // to be put at the end again
      this.#bound.set(key, known);
      return known;
    }
    const { cache, logits, logProbs, state } = this.#tensors;
    const lease = await this.#shared.sessions.lease(program);
    const totalLength = Tensor.scalar("int32", 0);
    const views: Tensor[] = [totalLength];
    const view = (tensor: Tensor): Tensor => {
      const [, ...shape] = tensor.shape;
      const made = tensor.view((first * tensor.size) / this.#maxRows, [rows, ...shape]);
      views.push(made);
      return made;
    };
    const { session } = lease;
    const binding = session.bind();
    const bound = { resident, binding, lease, views, totalLength };
    try {
      resident?.bind(session, binding);
      views.push(...bindCache(binding, cache, first, rows));
      binding
        .input("tokens", view(this.#tokens))
        .input("lastPositions", view(this.#lastPositions))
        .input("totalLength", totalLength)
        .output("logits", view(logits))
        .output("logProbs", view(logProbs));
      for (const { name, shape } of session.inputs) {
        if (!name.startsWith(STATE)) continue;
        const own = state(name.slice(STATE.length), shape.slice(1).map(Number), first, rows);
        views.push(own);
        binding.input(name, own);
      }
    } catch (error) {
      close(bound); // the adapter's tensors may have gone
      throw error;
    }
    this.#bound.set(key, bound);
    return bound;
  }

  #unbind(which: (bound: Bound) => boolean): void {
    for (const [key, bound] of this.#bound) {
      if (!which(bound)) continue;
      this.#bound.delete(key);
      close(bound);
    }
  }
}

function close({ binding, views, lease }: Bound): void {
  binding.dispose();
  for (const tensor of views) tensor.dispose();
  lease[Symbol.dispose]();
}

/**
 * From the first to after the last of the rows that have the form of items, where items are the faster way: under
 * milora's operators always, else where rows are of several adapters.
 */
function mixedRange(rows: readonly Row[]): { first: number; end: number } | undefined {
  const has = ({ resident }: Row): boolean => resident.lowered !== undefined;
  const residents = new Set(rows.filter(has).map(({ resident }) => resident));
  const adapted = operators() !== undefined && [...residents].some(({ adapter }) => adapter);
  return adapted || residents.size > 1 ? { first: rows.findIndex(has), end: rows.findLastIndex(has) + 1 } : undefined;
}

/** Neighbours of one adapter run together. */
function runsOf(rows: readonly Row[]): Run[] {
  const runs: Run[] = [];
  for (let first = 0; first < rows.length; ) {
    const { resident } = rows[first]!;
    let end = first + 1;
    while (rows[end]?.resident === resident) end++;
    const common = commonRoute(rows.slice(first, end).map(({ route }) => route));
    runs.push({ first, rows: end - first, resident, common });
    first = end;
  }
  return runs;
}
