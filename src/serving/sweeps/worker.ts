/** @file A worker: takes jobs of any sweep, has processes do them, keeps its leases, and tells what came of them. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { MiloraError, reasonOf, version } from "../../base/index.ts";
import { type CellRecord, writeRecord } from "../../evaluation/index.ts";
import { DatabaseUnreachable } from "../store/url.ts";
import { type Attempt, LeaseLost, type Progress, type WorkerFacts } from "./attempts.ts";
import { strangerTo } from "./marker.ts";
import { Slot, type SlotOutcome } from "./slot.ts";
import type { Sweeps } from "./sweeps.ts";

export type WorkerEvent =
  | { readonly type: "begun" | "finished" | "lost" | "given back"; readonly label: string }
  | { readonly type: "failed"; readonly label: string; readonly reason: string }
  /** A sweep is left to others. */
  | { readonly type: "shunned"; readonly directory: string; readonly reason: string }
  | { readonly type: "unreachable" | "reachable" };

export interface WorkerOptions {
  /** Jobs at a time, each in a process of its own. */
  readonly slots: number;
  /** Of each process. */
  readonly threads?: number | undefined;
  /** Who has not been heard of for so long loses its jobs to others. */
  readonly leaseSeconds?: number | undefined;
  /** Ends when no job is left that it may take. */
  readonly drain?: boolean | undefined;
  /** Jobs are saved and given back. */
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: WorkerEvent) => void) | undefined;
}

export const LEASE_SECONDS = 30;
/** Where nobody else can have the jobs: a machine that sleeps, or a process that is paused, loses nothing. */
export const ALONE_LEASE_SECONDS = 30 * 86_400;
const BEATS_PER_LEASE = 6;
/** What is watched is no staler than this, however long leases are. */
const MOST_BEAT_MS = 5000;
const POLL_MS = 1000;
/** A machine that could not do a sweep's jobs looks again after this: a directory may have been mounted. */
const SHUN_MS = 60_000;

/** A job that is being done. */
interface Held {
  readonly attempt: Attempt;
  readonly slot: Slot;
  progress: Progress | undefined;
  lost: boolean;
}

/** Works until the signal, or until all is done; ends when its processes have. */
export async function workOn(sweeps: Sweeps, options: WorkerOptions): Promise<void> {
  await new Worker(sweeps, options).work();
}

class Worker {
  readonly #sweeps: Sweeps;
  readonly #options: WorkerOptions;
  readonly #facts: WorkerFacts;
  readonly #held = new Set<Held>();
  readonly #shunned = new Map<string, { readonly reason: string; readonly until: number }>();
  readonly #done = new AbortController();
  #heard = Date.now();
  #unreachable = false;
  /** Something is wrong that no waiting helps: all jobs are given back. */
  #broken = false;

  constructor(sweeps: Sweeps, options: WorkerOptions) {
    this.#sweeps = sweeps;
    this.#options = options;
    const { slots, leaseSeconds = LEASE_SECONDS } = options;
    this.#facts = { id: randomUUID(), host: hostname(), pid: process.pid, slots, version, leaseSeconds };
  }

  async work(): Promise<void> {
    const { signal, slots } = this.#options;
    const onStop = () => {
      for (const { slot } of this.#held) slot.stop();
    };
    signal?.addEventListener("abort", onStop);
    const beating = this.#beat();
    try {
      const one = () =>
        this.#work().catch((error: unknown) => {
          this.#broken = true;
          onStop();
          throw error;
        });
      const working = Array.from({ length: slots }, one);
      const failed = (await Promise.allSettled(working)).find((result) => result.status === "rejected");
      if (failed) throw failed.reason;
    } finally {
      this.#done.abort();
      signal?.removeEventListener("abort", onStop);
      await beating;
      await this.#sweeps.attempts.signOff(this.#facts.id).catch(() => {}); // it is forgotten when it is silent
    }
  }

  get #stopping(): boolean {
    return this.#broken || (this.#options.signal?.aborted ?? false);
  }

  #tell(event: WorkerEvent): void {
    this.#options.onEvent?.(event);
  }

  /** What the database answers; undefined while it does not. */
  async #asked<T>(question: () => Promise<T>): Promise<T | undefined> {
    try {
      const answer = await question();
      if (this.#unreachable) this.#tell({ type: "reachable" });
      this.#unreachable = false;
      return answer;
    } catch (error) {
      if (!(error instanceof DatabaseUnreachable)) throw error;
      if (!this.#unreachable) this.#tell({ type: "unreachable" });
      this.#unreachable = true;
      return undefined;
    }
  }

  /** Leases last as long as this goes on; it also ends those of workers that have died. */
  async #beat(): Promise<void> {
    const lease = this.#facts.leaseSeconds * 1000;
    while (!this.#done.signal.aborted) {
      const held = [...this.#held];
      const answered = await this.#asked(async () => {
        await this.#sweeps.attempts.sign(this.#facts, this.#reasons());
        for (const one of held) {
          if (await this.#sweeps.attempts.heartbeat(one.attempt, one.progress)) one.slot.heard();
          else if (this.#held.has(one)) await this.#lose(one);
        }
        await this.#sweeps.attempts.reap();
        return true;
      }).catch(() => undefined); // a statement that failed is tried again with the next beat
      if (answered) this.#heard = Date.now();
      // Others may have the jobs by now.
      if (Date.now() - this.#heard > lease) for (const one of this.#held) await this.#lose(one);
      const pause = Math.min(MOST_BEAT_MS, Math.max(100, lease / BEATS_PER_LEASE));
      await sleep(pause, undefined, { signal: this.#done.signal }).catch(() => {});
    }
  }

  async #lose(held: Held): Promise<void> {
    held.lost = true;
    await held.slot.kill();
  }

  #reasons(): Record<string, string> {
    return Object.fromEntries([...this.#shunned].map(([sweep, { reason }]) => [sweep, reason]));
  }

  /** One job after the other. */
  async #work(): Promise<void> {
    let slot: Slot | undefined;
    try {
      while (!this.#stopping) {
        const shunned = this.#shunnedNow();
        const attempt = await this.#asked(() => this.#sweeps.attempts.take(this.#facts, shunned));
        if (attempt) {
          if (!slot?.alive) slot = new Slot(this.#options.threads);
          await this.#attempt(attempt, slot);
          continue;
        }
        if (this.#options.drain && (await this.#asked(() => this.#sweeps.open(shunned))) === 0) return;
        await sleep(POLL_MS, undefined, { signal: this.#options.signal }).catch(() => {});
      }
    } finally {
      await slot?.kill();
    }
  }

  #shunnedNow(): Set<string> {
    for (const [sweep, { until }] of this.#shunned) if (until < Date.now()) this.#shunned.delete(sweep);
    return new Set(this.#shunned.keys());
  }

  async #attempt(attempt: Attempt, slot: Slot): Promise<void> {
    const held: Held = { attempt, slot, progress: undefined, lost: false };
    const { label } = attempt.data;
    this.#held.add(held);
    this.#tell({ type: "begun", label });
    try {
      const outcome = await this.#outcome(held);
      await this.#settle(held, outcome);
    } catch (error) {
      await slot.kill();
      if (error instanceof LeaseLost) this.#tell({ type: "lost", label });
      else await this.#fail(held, error instanceof MiloraError ? error.code : "UNEXPECTED", reasonOf(error));
    } finally {
      this.#held.delete(held);
    }
  }

  async #outcome(held: Held): Promise<SlotOutcome> {
    const { attempt, slot } = held;
    const { sweep, directory, data } = attempt;
    const stranger = strangerTo({ id: sweep, directory });
    if (stranger !== undefined) return { type: "unsuited", reason: stranger };
    const spec = await this.#insist(held, () => this.#sweeps.spec(sweep, data.spec));
    if (!spec) throw new LeaseLost(); // the sweep was removed
    const known = await this.#insist(held, () => this.#sweeps.records(sweep, [...data.cells, ...data.after]));
    for (const { record } of known) writeRecord(directory, record); // its worker may have ended before it did
    let written = Promise.resolve();
    let problem: unknown;
    const keep = async (record: CellRecord) => {
      const kept = await this.#insist(held, () => this.#sweeps.attempts.record(attempt, record));
      writeRecord(directory, kept);
    };
    if (this.#stopping) return { type: "end", failures: [], interrupted: true };
    const outcome = await slot.run(
      {
        ...{ type: "job", directory, key: `${sweep} ${data.spec}`, spec, label: data.label, cells: data.cells },
        known: known.map(({ record }) => record),
        again: attempt.before !== undefined,
        leaseSeconds: this.#facts.leaseSeconds,
      },
      {
        onRecord: (record) => {
          written = written
            .then(() => keep(record))
            .catch((error: unknown) => {
              problem ??= error;
            });
        },
        onProgress: (progress) => {
          held.progress = progress;
        },
      },
    );
    await written;
    if (problem !== undefined) throw problem;
    return outcome;
  }

  async #settle(held: Held, outcome: SlotOutcome): Promise<void> {
    const { attempt } = held;
    const { label } = attempt.data;
    this.#held.delete(held); // what ends here is not missed by the next beat
    if (outcome.type === "unsuited") {
      const { sweep, directory } = attempt;
      const { reason } = outcome;
      this.#shunned.set(sweep, { reason, until: Date.now() + SHUN_MS });
      await this.#insist(held, () => this.#sweeps.attempts.giveBack(attempt, reason));
      this.#tell({ type: "shunned", directory, reason });
    } else if (outcome.type === "died") {
      if (held.lost) throw new LeaseLost();
      await this.#fail(held, "WORKER_LOST", `its process on ${this.#facts.host} ${outcome.how}`);
    } else if (outcome.interrupted) {
      await this.#insist(held, () => this.#sweeps.attempts.giveBack(attempt, "its worker was stopped"));
      this.#tell({ type: "given back", label });
    } else if (outcome.failures.length > 0) {
      const [first, ...more] = outcome.failures;
      const others = more.length ? `, and ${more.length} more` : "";
      await this.#fail(held, first!.code, `${first!.label}: ${first!.reason}${others}`);
    } else {
      await this.#insist(held, () => this.#sweeps.attempts.finish(attempt));
      this.#tell({ type: "finished", label });
    }
  }

  async #fail(held: Held, code: string, message: string): Promise<void> {
    const { attempt } = held;
    const { label } = attempt.data;
    try {
      await this.#insist(held, () => this.#sweeps.attempts.fail(attempt, { code, message }));
      this.#tell({ type: "failed", label, reason: message });
    } catch (error) {
      if (!(error instanceof LeaseLost)) throw error;
      this.#tell({ type: "lost", label });
    }
  }

  /** Asks until the database answers, as long as the lease may hold. */
  async #insist<T>(held: Held, question: () => Promise<T>): Promise<T> {
    for (;;) {
      let answered = false;
      const answer = await this.#asked(async () => {
        const value = await question();
        answered = true;
        return value;
      });
      if (answered) return answer as T;
      if (held.lost || this.#stopping) throw new LeaseLost(); // or it will be, and there is time for no more
      await sleep(POLL_MS);
    }
  }
}
