/** @file Packs an adapter for its way to a server. */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { pack } from "tar-stream";
import { InputError } from "../../base/index.ts";
import { ADAPTER_FILES } from "./archive.ts";

/**
 * The files of an adapter as a .tar, made while it is read.
 * @throws InputError FILE_UNREADABLE naming what is missing
 */
export async function packAdapter(directory: string): Promise<AsyncIterable<Uint8Array>> {
  const sizes = new Map<string, number>();
  const missing: string[] = [];
  for (const file of ADAPTER_FILES) {
    const found = await stat(join(directory, file)).catch(() => undefined);
    if (found?.isFile()) sizes.set(file, found.size);
    else missing.push(`${file} is not there, or no file`);
  }
  if (missing.length > 0) throw new InputError("FILE_UNREADABLE", directory, missing);
  const tar = pack();
  const fill = async (): Promise<void> => {
    for (const [name, size] of sizes) {
      await new Promise<void>((resolve, reject) => {
        const entry = tar.entry({ name, size }, (error) => (error ? reject(error) : resolve()));
        const file = createReadStream(join(directory, name));
        file.on("error", reject);
        file.pipe(entry as unknown as NodeJS.WritableStream);
      });
    }
    tar.finalize();
  };
  fill().catch((error: unknown) => tar.destroy(error as Error));
  return tar as unknown as AsyncIterable<Uint8Array>;
}
