/** @file Hears of what other servers change in the database, and knows when it may have missed something. */
import { setTimeout as sleep } from "node:timers/promises";
import { connectionOf } from "./url.ts";

const CHANNEL = "milora_changed";
/** A connection that is cut without a word is noticed after one of each. */
const PING_MS = 1000;
const ANSWER_MS = 2000;
/** Between attempts to listen again. */
const RETRY_MS = 200;

/** Tables whose changes are told; migrations/ has the triggers. */
export const TOLD = ["tenants", "keys", "adapters", "grants"] as const;
export type Told = (typeof TOLD)[number];

export interface Hearer {
  /** Something in this table has changed. */
  changed(table: Told): void;
  /** Whether changes are heard of from now on; what came before may have been missed. */
  listening(on: boolean): void;
}

/** Listens on a connection of its own, over and over again, until disposed. */
export class Changes implements AsyncDisposable {
  readonly #url: string;
  readonly #hearer: Hearer;
  readonly #end = new AbortController();
  readonly #done: Promise<void>;
  #on = false;

  constructor(url: string, hearer: Hearer) {
    this.#url = url;
    this.#hearer = hearer;
    this.#done = this.#run();
  }

  get listening(): boolean {
    return this.#on;
  }

  async #run(): Promise<void> {
    while (!this.#end.signal.aborted) {
      // A failure means that nothing is heard for now, which is told; why, requests find out by themselves.
      await this.#listen().catch(() => {});
      this.#tell(false);
      await this.#pause(RETRY_MS);
    }
  }

  /** Ends, or fails, when nothing is heard any more. */
  async #listen(): Promise<void> {
    const { default: pg } = await import("pg");
    const client = new pg.Client({ ...connectionOf(this.#url), query_timeout: ANSWER_MS });
    const lost = new Promise<"lost">((resolve) => {
      for (const event of ["end", "error"] as const) client.on(event, () => resolve("lost"));
    });
    client.on("notification", ({ payload }) => {
      if (TOLD.some((table) => table === payload)) this.#hearer.changed(payload as Told);
    });
    try {
      await client.connect();
      await client.query(`LISTEN ${CHANNEL}`);
      this.#tell(true);
      while (!this.#end.signal.aborted) {
        if ((await Promise.race([lost, this.#pause(PING_MS)])) === "lost") return;
        await client.query("SELECT 1");
      }
    } finally {
      void client.end().catch(() => {}); // one that is cut off does not answer
    }
  }

  #tell(on: boolean): void {
    if (on === this.#on) return;
    this.#on = on;
    this.#hearer.listening(on);
  }

  async #pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#end.signal, ref: false }).catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end.abort();
    await this.#done;
  }
}
