/** @file The right to make files of adapters visible or to remove them, which one has at a time: of this server, and of all. */
import { Gate } from "./load.ts";
import type { AdapterTable } from "./record.ts";

export class Sole {
  readonly #gate = new Gate(1);
  readonly #table: Pick<AdapterTable, "guard">;

  constructor(table: Pick<AdapterTable, "guard">) {
    this.#table = table;
  }

  async enter(): Promise<AsyncDisposable> {
    const place = await this.#gate.enter();
    try {
      const guard = await this.#table.guard?.();
      const leave = async (): Promise<void> => {
        using _place = place;
        await guard?.[Symbol.asyncDispose]();
      };
      return { [Symbol.asyncDispose]: leave };
    } catch (error) {
      place[Symbol.dispose]();
      throw error;
    }
  }

  /** Waits for whoever of this server has it now. */
  async settled(): Promise<void> {
    using _place = await this.#gate.enter();
  }
}
