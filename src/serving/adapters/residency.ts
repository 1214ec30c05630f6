/** @file Adapters in memory: loaded once for many callers, counted while in use, evicted least recently used first, never beyond the budget. */
import { type Clock, MiloraError, machineClock, sum } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { type Claim, leastServed } from "./load.ts";
import { AdaptersBusyError, exceedsMemory } from "./memory-errors.ts";
import { orAborted, withResolvers } from "./promises.ts";

/** What there is of an adapter in memory. */
export interface ResidentTensors {
  dispose(): void;
}

export interface ResidencyOptions<A extends ResidentTensors = Adapter> {
  readonly maxBytes: number;
  readonly maxAdapters: number;
  /** How long a load waits for memory that others use. */
  readonly waitMs: number;
  load(digest: string, memory: LoadMemory, signal: AbortSignal, claim: Claim): Promise<A>;
  /** Told before the tensors of an adapter go. */
  forget(adapter: A): void;
  /** Default: the machine's. */
  readonly clock?: Clock;
}

/** What a load takes of the budget. */
export interface LoadMemory {
  /** To be called with the bytes that the tensors may take before they are allocated. */
  reserve(bytes: number): Promise<void>;
  /** With those that are kept, when that is known. */
  settle(bytes: number): void;
}

/** One adapter that is in memory, or on its way there. */
interface Slot<A> {
  readonly digest: string;
  /** Undefined until it is loaded. */
  adapter: A | undefined;
  /** Reserved for it, then what it takes; 0 until its size is known. */
  bytes: number;
  reserved: boolean;
  /** Who uses it or waits for it. */
  users: number;
  /** Of those who wait for it to be loaded. */
  readonly claims: Set<Claim>;
  pinned: boolean;
  /** To go with its last user. */
  retired: boolean;
  /** Milliseconds since 1970. */
  lastUsed: number;
  readonly loading: Promise<void>;
  readonly abort: AbortController;
}

export interface Wish {
  readonly signal?: AbortSignal;
  /** Without one as if nothing had been served. */
  readonly claim?: Claim;
}

interface Waiter<A> {
  readonly slot: Slot<A>;
  readonly bytes: number;
  grant(): void;
}

export interface SlotReport {
  readonly digest: string;
  readonly resident: boolean;
  readonly bytes: number;
  readonly pinned: boolean;
  readonly inFlight: number;
  readonly lastUsed: Date;
}

export interface ResidencyStats {
  readonly resident: number;
  readonly residentBytes: number;
  readonly waiting: number;
  readonly hits: number;
  readonly loads: number;
  readonly failures: number;
  readonly evictions: number;
}

export class Residency<A extends ResidentTensors = Adapter> implements AsyncDisposable {
  readonly #options: ResidencyOptions<A>;
  /** Least recently used first. */
  readonly #slots = new Map<string, Slot<A>>();
  /** Loads that wait for memory, in the order in which they came. */
  readonly #waiters: Waiter<A>[] = [];
  /** What goes when its present users have ended, so that who waits is not passed over for ever. */
  readonly #closing = new Set<Slot<A>>();
  #bytes = 0;
  #count = 0;
  readonly #counters = { hits: 0, loads: 0, failures: 0, evictions: 0 };
  /** Loads under way, also those that nobody wants any more. */
  readonly #loading = new Set<Promise<void>>();
  #closed = false;

  constructor(options: ResidencyOptions<A>) {
    this.#options = options;
  }

  /**
   * The adapter, and the right to use it until `release`. Whoever asks while it is being loaded waits for the same load.
   * @throws what loading throws; AdaptersBusyError; the signal's reason
   */
  async acquire(digest: string, { signal, claim = () => 0 }: Wish = {}): Promise<{ adapter: A; release(): void }> {
    if (this.#closed) throw new MiloraError("DRAINING", "the server is shutting down", { exitCode: 1 });
    signal?.throwIfAborted();
    let slot = this.#slots.get(digest);
    if (slot?.abort.signal.aborted) slot = undefined; // nobody wanted it any more; a new load takes its place
    if (slot?.adapter) this.#counters.hits++;
    slot ??= this.#begin(digest);
    slot.users++;
    slot.retired = false;
    this.#use(slot);
    const own: Claim = () => claim(); // others may have the same function
    slot.claims.add(own);
    try {
      if (!slot.adapter) await orAborted(slot.loading, signal);
    } catch (error) {
      this.#leave(slot);
      throw error;
    } finally {
      slot.claims.delete(own);
    }
    const { adapter } = slot;
    if (!adapter) throw new Error(`adapter ${digest} is loaded and not there`);
    let released = false;
    return {
      adapter,
      release: () => {
        if (released) return;
        released = true;
        this.#leave(slot);
      },
    };
  }

  /** Keeps it from being evicted, if it is in memory; or no longer. */
  pin(digest: string, pinned: boolean): void {
    if (pinned) this.#reopen(digest);
    const slot = this.#slots.get(digest);
    if (!slot?.adapter) return;
    slot.pinned = pinned;
    this.#settle(slot);
    this.#serve();
  }

  /** Lets it go as soon as nobody uses it. */
  retire(digest: string): void {
    const slot = this.#slots.get(digest);
    if (!slot) return;
    slot.pinned = false;
    slot.retired = true;
    this.#settle(slot);
    this.#serve();
  }

  report(): SlotReport[] {
    const going = new Map([...this.#closing].map((slot) => [slot.digest, slot]));
    return [...new Map([...going, ...this.#slots])].map(([digest, slot]) => {
      const { adapter, bytes, pinned, users, lastUsed } = slot;
      const old = going.get(digest);
      const inFlight = old && old !== slot ? users + old.users : users;
      return { digest, resident: adapter !== undefined, bytes, pinned, inFlight, lastUsed: new Date(lastUsed) };
    });
  }

  get stats(): ResidencyStats {
    return { resident: this.#count, residentBytes: this.#bytes, waiting: this.#waiters.length, ...this.#counters };
  }

  /** Ends loading and frees what nobody uses; the rest goes with its last user. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    for (const slot of [...this.#slots.values()]) {
      if (!slot.adapter) slot.abort.abort(new MiloraError("DRAINING", "the server is shutting down", { exitCode: 1 }));
      this.retire(slot.digest);
    }
    await Promise.allSettled(this.#loading);
  }

  #begin(digest: string): Slot<A> {
    const abort = new AbortController();
    const { promise, resolve, reject } = withResolvers();
    promise.catch(() => {}); // those who wait hear of it
    const slot: Slot<A> = {
      ...{ digest, adapter: undefined, bytes: 0, reserved: false, users: 0, pinned: false, retired: false },
      ...{ claims: new Set<Claim>(), lastUsed: Date.now(), loading: promise, abort },
    };
    this.#slots.set(digest, slot);
    this.#counters.loads++;
    const loading = this.#options
      .load(
        digest,
        { reserve: (bytes) => this.#reserve(slot, bytes), settle: (bytes) => this.#resize(slot, bytes) },
        abort.signal,
        () => servedTo(slot),
      )
      .then(
        (adapter) => {
          slot.adapter = adapter;
          if (abort.signal.aborted) {
            // Nobody waits any more, and another load may have taken its place.
            this.#drop(slot);
            reject(abort.signal.reason);
          } else resolve();
          this.#serve();
        },
        (error: unknown) => {
          if (!abort.signal.aborted) this.#counters.failures++;
          this.#drop(slot);
          reject(error);
          this.#serve();
        },
      );
    this.#loading.add(loading);
    void loading.finally(() => this.#loading.delete(loading));
    return slot;
  }

  /** Puts it at the end of the queue of those to be evicted. */
  #use(slot: Slot<A>): void {
    slot.lastUsed = Date.now();
    if (this.#slots.get(slot.digest) !== slot) return;
    this.#slots.delete(slot.digest);
    this.#slots.set(slot.digest, slot);
  }

  #leave(slot: Slot<A>): void {
    slot.users--;
    this.#use(slot);
    if (slot.users === 0 && !slot.adapter) slot.abort.abort(new Error("nobody waits for this adapter any more"));
    this.#settle(slot);
    this.#serve();
  }

  /** Frees a retired slot that nobody uses. */
  #settle(slot: Slot<A>): void {
    if (slot.retired && slot.users === 0 && !slot.pinned && slot.adapter) this.#drop(slot);
  }

  /** Takes a slot out, with its tensors and its memory. Nobody may be using it. */
  #drop(slot: Slot<A>): void {
    if (this.#slots.get(slot.digest) === slot) this.#slots.delete(slot.digest);
    this.#closing.delete(slot);
    const { adapter } = slot;
    slot.adapter = undefined;
    if (slot.reserved) {
      slot.reserved = false;
      this.#bytes -= slot.bytes;
      this.#count--;
    }
    if (!adapter) return;
    try {
      this.#options.forget(adapter);
    } finally {
      adapter.dispose();
    }
  }

  /** Waits for memory. @throws InputError ADAPTER_TOO_LARGE, AdaptersBusyError, the reason of the slot's abort */
  async #reserve(slot: Slot<A>, bytes: number): Promise<void> {
    const { maxBytes, waitMs, clock = machineClock } = this.#options;
    slot.abort.signal.throwIfAborted();
    if (bytes > maxBytes) throw exceedsMemory(bytes, maxBytes);
    slot.bytes = bytes;
    const { promise, resolve, reject } = withResolvers();
    const waiter: Waiter<A> = { slot, bytes, grant: resolve };
    this.#waiters.push(waiter);
    const give = (error: unknown): void => {
      const at = this.#waiters.indexOf(waiter);
      if (at < 0) return;
      this.#waiters.splice(at, 1);
      reject(error);
      this.#serve();
    };
    const aborted = (): void => give(slot.abort.signal.reason);
    const busy = (): void =>
      give(new AdaptersBusyError("all memory for adapters is in use; try again later", Math.ceil(waitMs / 1000)));
    slot.abort.signal.addEventListener("abort", aborted);
    const callOff = clock.after(waitMs, busy);
    this.#serve();
    if (!slot.reserved && !this.#couldFit(waiter)) busy();
    try {
      await promise;
    } finally {
      callOff();
      slot.abort.signal.removeEventListener("abort", aborted);
    }
  }

  /** Counts what it takes instead of what it was thought to take; where that is more, others go. */
  #resize(slot: Slot<A>, bytes: number): void {
    if (!slot.reserved) return;
    this.#bytes += bytes - slot.bytes;
    slot.bytes = bytes;
    this.#makeRoom(0, 0);
    this.#serve();
  }

  /** Whether there would be room if all that is not pinned went. */
  #couldFit({ bytes }: Waiter<A>): boolean {
    const pinned = [...this.#slots.values()].filter((slot) => slot.pinned && slot.reserved);
    const taken = sum(pinned.map(({ bytes: own }) => own));
    return taken + bytes <= this.#options.maxBytes && pinned.length < this.#options.maxAdapters;
  }

  /** Gives memory to those who wait for it, who was served least first, evicting what must go for it. */
  #serve(): void {
    if (this.#waiters.length === 0) for (const { digest } of this.#closing) this.#reopen(digest);
    for (;;) {
      const waiter = leastServed(this.#waiters, ({ slot }) => servedTo(slot));
      if (!waiter) return;
      if (!this.#makeRoom(waiter.bytes)) {
        this.#close(waiter.bytes);
        return;
      }
      this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
      this.#bytes += waiter.bytes;
      this.#count++;
      waiter.slot.reserved = true;
      waiter.grant();
    }
  }

  /**
   * Sees to it that there will be room however popular the others are: those with the fewest users take no new ones and go
   * with the last that they have. Whoever asks for them meanwhile waits for another load.
   */
  #close(bytes: number): void {
    const { maxBytes, maxAdapters } = this.#options;
    const movable = [...this.#slots.values()].filter(({ adapter, pinned }) => adapter && !pinned);
    const going = [...movable.filter(({ users }) => users === 0), ...this.#closing];
    let free = maxBytes - this.#bytes + sum(going.map((slot) => slot.bytes));
    let places = maxAdapters - this.#count + going.length;
    for (const slot of movable.filter(({ users }) => users > 0).sort((a, b) => a.users - b.users)) {
      if (free >= bytes && places > 0) return;
      slot.retired = true;
      this.#slots.delete(slot.digest);
      this.#closing.add(slot);
      free += slot.bytes;
      places++;
    }
  }

  /** Takes back that it is to go, unless another load has taken its place. */
  #reopen(digest: string): void {
    const slot = [...this.#closing].find((one) => one.digest === digest);
    if (!slot || this.#slots.has(digest)) return;
    this.#closing.delete(slot);
    slot.retired = false;
    this.#slots.set(digest, slot);
  }

  /** Evicts until there is room; nothing when there would not be enough of it. */
  #makeRoom(bytes: number, adapters = 1): boolean {
    const { maxBytes, maxAdapters } = this.#options;
    const victims: Slot<A>[] = [];
    let free = maxBytes - this.#bytes;
    let places = maxAdapters - this.#count;
    for (const slot of this.#slots.values()) {
      if (free >= bytes && places >= adapters) break;
      if (!slot.adapter || slot.users > 0 || slot.pinned) continue;
      victims.push(slot);
      free += slot.bytes;
      places++;
    }
    if (free < bytes || places < adapters) return false;
    for (const slot of victims) {
      this.#counters.evictions++;
      this.#drop(slot);
    }
    return true;
  }
}

/** Of all who wait for it, who was served least. */
function servedTo({ claims }: { readonly claims: ReadonlySet<Claim> }): number {
  return Math.min(...[...claims].map((claim) => claim()));
}
