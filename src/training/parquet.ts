/** @file Reads parquet in a thread of its own: a damaged file can count so high that reading it would not end, and is given up then. */
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";

/** A file is given up when so many milliseconds have passed without a further group of rows, and this many more for each of its bytes. */
const PATIENCE_MS = 30_000;
const MS_PER_BYTE = 1e-3;

/** As text: a file of its own would have to be found from sources, from what is built, and from a package. */
const READER = `
const { parentPort, workerData } = require("node:worker_threads");
const loaded = Promise.all(workerData.map((url) => import(url)));
async function read(file) {
  const [{ parquetMetadata, parquetReadObjects }, { compressors }] = await loaded;
  const metadata = parquetMetadata(file);
  let rowStart = 0;
  for (const { num_rows } of metadata.row_groups) {
    const rowEnd = rowStart + Number(num_rows);
    parentPort.postMessage({ rows: await parquetReadObjects({ file, compressors, metadata, rowStart, rowEnd }) });
    rowStart = rowEnd;
  }
}
parentPort.on("message", (file) => {
  read(file).then(() => parentPort.postMessage({}), (error) => parentPort.postMessage({ problem: error?.message ?? String(error) }));
});`;

/** Rows of one group; or none, when there is no more; or what keeps it from being read. */
type Said = { readonly rows?: Record<string, unknown>[]; readonly problem?: string };

/** Stays for the next file, and keeps nobody from ending. */
let kept: Worker | undefined;
let turn: Promise<unknown> = Promise.resolve();

function start(): Worker {
  const { resolve } = createRequire(import.meta.url);
  const urls = ["hyparquet", "hyparquet-compressors"].map((name) => pathToFileURL(resolve(name)).href);
  return new Worker(READER, { eval: true, workerData: urls });
}

/**
 * The rows of a parquet file, one file at a time.
 * @param patienceMs without a further group of rows before it is given up
 * @throws Error what is wrong with it, or that it takes too long
 */
export function parquetRows(
  file: Uint8Array,
  patienceMs = PATIENCE_MS + MS_PER_BYTE * file.byteLength,
): Promise<Record<string, unknown>[]> {
  const rows = turn.then(() => read(new Uint8Array(file).buffer, patienceMs));
  turn = rows.catch(() => {});
  return rows;
}

async function read(file: ArrayBuffer, patienceMs: number): Promise<Record<string, unknown>[]> {
  kept ??= start();
  const worker = kept;
  const all: Record<string, unknown>[][] = [];
  let stop = (): void => {};
  const done = new Promise<string | undefined>((resolve, reject) => {
    const late = (): void => reject(new Error(`no rows within ${Math.round(patienceMs / 1000)} s`));
    const timer = setTimeout(late, patienceMs);
    const hear = ({ rows, problem }: Said): void => {
      timer.refresh();
      if (rows) all.push(rows);
      else resolve(problem);
    };
    worker.on("message", hear).on("error", reject).ref();
    stop = () => {
      clearTimeout(timer);
      worker.off("message", hear).off("error", reject).unref();
    };
  });
  worker.postMessage(file, [file]);
  const problem = await done
    .catch(async (error: unknown) => {
      kept = undefined; // it computes still, or has ended
      await worker.terminate();
      throw error;
    })
    .finally(stop);
  if (problem !== undefined) throw new Error(problem);
  return all.flat();
}
