/** @file A worker's handle of a process that computes for it; a crash there costs one job, not the worker. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { CellRecord } from "../../evaluation/index.ts";
import type { Progress } from "./attempts.ts";
import type { FromSlot, SlotJob, ToSlot } from "./messages.ts";

/** Built, from src/ and dist/ alike. */
const PROCESS = fileURLToPath(new URL("../../../dist/serving/sweeps/slot-process.js", import.meta.url));

export type SlotOutcome =
  | Extract<FromSlot, { readonly type: "end" | "unsuited" }>
  /** The process has ended. */
  | { readonly type: "died"; readonly how: string };

export interface SlotHooks {
  readonly onRecord: (record: CellRecord) => void;
  readonly onProgress: (progress: Progress) => void;
}

export class Slot {
  readonly #child: ChildProcess;
  #ended: string | undefined;

  constructor(threads: number | undefined) {
    this.#child = fork(PROCESS, [String(threads ?? 0)], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
    this.#child.on("error", (error) => {
      this.#ended ??= error.message;
    });
    this.#child.once("exit", (code, signal) => {
      this.#ended ??= signal ? `was ended by ${signal}` : `ended with code ${code}`;
    });
  }

  get alive(): boolean {
    return this.#ended === undefined;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** One job at a time. */
  async run(job: SlotJob, { onRecord, onProgress }: SlotHooks): Promise<SlotOutcome> {
    const child = this.#child;
    return new Promise((resolve) => {
      const settle = (outcome: SlotOutcome) => {
        child.off("message", onMessage).off("exit", onExit);
        resolve(outcome);
      };
      const onMessage = (message: unknown) => {
        const told = message as FromSlot;
        if (told.type === "record") onRecord(told.record);
        else if (told.type === "progress") onProgress(told.progress);
        else settle(told);
      };
      const onExit = () => settle({ type: "died", how: this.#ended ?? "is gone" });
      child.on("message", onMessage).once("exit", onExit);
      if (this.alive) this.#send(job);
      else onExit();
    });
  }

  heard(): void {
    this.#send({ type: "heard" });
  }

  /** What is begun is saved, and the job ends interrupted. */
  stop(): void {
    this.#send({ type: "stop" });
  }

  #send(message: ToSlot): void {
    if (this.#child.connected) this.#child.send(message, () => {}); // who is gone is told of by `exit`
  }

  /** At once; nothing is written after this. */
  async kill(): Promise<void> {
    if (!this.alive || this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill("SIGKILL");
    await once(this.#child, "exit");
  }
}
