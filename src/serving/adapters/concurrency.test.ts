/** @file Many callers at once do anything in any order: nothing is used after it was freed, nothing is freed twice or never, memory stays in its bounds. */
import { afterEach, expect, test, vi } from "vitest";
import { MiloraError, Random } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { Tensor } from "../../runtime/index.ts";
import { AdapterRegistry } from "./registry.ts";
import { DirectoryStorage } from "./storage/directory.ts";
import { backbone, newAdapter, Rows, temporary } from "./testing.ts";
import type { AdapterLease } from "./types.ts";

/** `MILORA_REGISTRY_SEEDS=1000 npx vitest run src/serving/adapters/concurrency.test.ts` looks longer. */
const SEEDS = Number(process.env.MILORA_REGISTRY_SEEDS) || 8;
const CALLERS = 10;
const STEPS = 40;
const NAMES = ["a", "b", "c", "d"];
const OWNERS = [null, "t"];
const RANKS = [1, 2, 2, 4, 8];

/** What may rightly happen to a caller. */
const EXPECTED = ["MODEL_NOT_FOUND", "ADAPTERS_BUSY", "ADAPTER_PINNED"];
const IMPATIENT = new Error("impatient");

afterEach(() => vi.restoreAllMocks());

const allDisposed = (adapter: Adapter): boolean => [...adapter.tensors.values()].every((tensor) => tensor.disposed);
const noneDisposed = (adapter: Adapter): boolean => ![...adapter.tensors.values()].some((tensor) => tensor.disposed);

test(`${SEEDS} random histories`, async () => {
  // The real ones, watched: what was allocated must be gone in the end.
  const allocated: Tensor[] = [];
  const allocate = Tensor.allocate.bind(Tensor);
  vi.spyOn(Tensor, "allocate").mockImplementation((...args) => {
    const tensor = allocate(...args);
    allocated.push(tensor);
    return tensor;
  });
  const sources = await Promise.all(RANKS.map((r, i) => newAdapter(i + 1, { r })));
  const sizes: number[] = [];
  const numbers = new Map<string, string>();
  {
    await using probe = await AdapterRegistry.open({
      storage: new DirectoryStorage(temporary()),
      adapters: new Rows(),
      backbone,
    });
    for (const [i, directory] of sources.entries()) {
      const record = await probe.install({ directory }, { owner: null, name: `n${i}` });
      using lease = await probe.lease(record);
      sizes.push(probe.residency().at(-1)!.bytes);
      numbers.set(record.digest, lease.adapter.digest);
    }
  }
  expect(allocated.every(({ disposed }) => disposed)).toBe(true);
  const counts = { leases: 0, busy: 0, evictions: 0, missing: 0, impatient: 0 };

  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = new Random(seed);
    const pick = <T>(list: readonly T[]): T => list[random.integer(list.length)]!;
    const held = new Set<AdapterLease>();
    const forgotten = new Set<Adapter>();
    const limits = {
      ...{ maxResident: 3, maxResidentBytes: Math.max(...sizes) + Math.min(...sizes), leaseTimeoutMs: 40 },
      ...{ removeTimeoutMs: 10, graceMs: 5000 },
    };
    const engine = {
      forget(adapter: Adapter) {
        expect(forgotten.has(adapter)).toBe(false);
        expect(noneDisposed(adapter)).toBe(true);
        for (const lease of held) expect(lease.adapter).not.toBe(adapter);
        forgotten.add(adapter);
      },
    };
    const rows = new Rows();
    const registry = await AdapterRegistry.open({
      storage: new DirectoryStorage(temporary()),
      adapters: rows,
      backbone,
      engine,
      limits,
    });
    const check = (): void => {
      const { resident, residentBytes } = registry.stats;
      expect(residentBytes).toBeLessThanOrEqual(limits.maxResidentBytes);
      expect(resident).toBeLessThanOrEqual(limits.maxResident);
      for (const { adapter } of held) expect(noneDisposed(adapter)).toBe(true);
    };
    const wait = (): Promise<void> =>
      new Promise((resolve) =>
        random.uniform() < 0.5 ? setImmediate(resolve) : setTimeout(resolve, random.integer(4)),
      );

    const use = async (model: string): Promise<void> => {
      const record = (await registry.resolve({ tenant: "t" }, model))!;
      if (random.uniform() < 0.2) await wait(); // the adapter may be replaced or removed right now
      const impatience = new AbortController();
      if (random.uniform() < 0.2) setTimeout(() => impatience.abort(IMPATIENT), random.integer(5));
      using lease = await registry.lease(record, { signal: impatience.signal });
      held.add(lease);
      counts.leases++;
      try {
        for (let i = random.integer(3); i >= 0; i--) {
          await wait();
          check();
        }
        expect(lease.adapter.digest).toBe(numbers.get(record.digest));
      } finally {
        held.delete(lease);
      }
    };
    const act = async (): Promise<void> => {
      const owner = pick(OWNERS);
      const name = pick(NAMES);
      const model = owner === null ? name : `${owner}/${name}`;
      const dice = random.uniform();
      if (dice < 0.15) await registry.install({ directory: pick(sources) }, { owner, name });
      else if (dice < 0.22) await registry.remove(owner, name);
      else if (dice < 0.27) await registry.unload((await registry.resolve({ tenant: "t" }, model))!);
      else if (dice < 0.31) await registry.pin((await registry.resolve({ tenant: "t" }, model))!);
      else if (dice < 0.38) await registry.unpin((await registry.resolve({ tenant: "t" }, model))!);
      else if (dice < 0.4) await registry.sweep();
      else await use(model);
    };
    const caller = async (): Promise<void> => {
      for (let step = 0; step < STEPS; step++) {
        try {
          await act();
        } catch (error) {
          if (error === IMPATIENT) counts.impatient++;
          else if (error instanceof MiloraError && EXPECTED.includes(error.code)) {
            counts[error.code === "ADAPTERS_BUSY" ? "busy" : "missing"]++;
          } else throw error;
        }
        check();
      }
    };
    for (const owner of OWNERS) {
      for (const name of NAMES) await registry.install({ directory: pick(sources) }, { owner, name });
    }
    await Promise.all(Array.from({ length: CALLERS }, caller));

    // Everybody has gone: what is left is what the rows say, and all of it goes.
    expect(held.size).toBe(0);
    for (const slot of registry.residency()) expect(slot).toMatchObject({ inFlight: 0 });
    expect((await registry.all()).every(({ inFlight }) => inFlight === 0)).toBe(true);
    const pinned = new Set((await rows.all()).filter((row) => row.pinned).map(({ digest }) => digest));
    for (const slot of registry.residency()) if (slot.pinned) expect([...pinned]).toContain(slot.digest);
    counts.evictions += registry.stats.evictions;
    await registry[Symbol.asyncDispose]();
    expect(registry.stats).toMatchObject({ resident: 0, residentBytes: 0, waiting: 0 });
    for (const adapter of forgotten) expect(allDisposed(adapter)).toBe(true);
    expect(allocated.filter(({ disposed }) => !disposed)).toEqual([]);
    allocated.length = 0;
  }
  // The histories had everything in them.
  for (const count of Object.values(counts)) expect(count).toBeGreaterThan(SEEDS);
});
