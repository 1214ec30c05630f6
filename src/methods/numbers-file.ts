/** @file A file of tensors that is open while somebody reads numbers off it. */
import type { SafetensorsFile } from "../models/index.ts";

export class NumbersFile {
  readonly #open: () => SafetensorsFile;
  #file: SafetensorsFile | undefined;

  constructor(open: () => SafetensorsFile) {
    this.#open = open;
  }

  opened(): SafetensorsFile {
    this.#file ??= this.#open();
    return this.#file;
  }

  close(): void {
    this.#file?.dispose();
    this.#file = undefined;
  }
}
