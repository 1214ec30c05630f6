/** @file What the machine can do at most: memory read and large products, with all threads. Argument: the number of threads. */
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { configureRuntime, type DType, Session, Tensor } from "../../src/runtime/index.ts";
import { testModel } from "../../src/runtime/testing.ts";
import type { Ceilings } from "../lib/ceilings.ts";
import { serve } from "../lib/worker.ts";

/** Far more than the cache of any processor. */
const BYTES = 2 ** 29;
/** Of the products: rows, inputs, outputs. */
const [M, K, N] = [512, 4096, 4096];
const TRIES = 4;

interface Part {
  readonly memory: SharedArrayBuffer;
  readonly from: number;
  readonly bytes: number;
}

/** Most a second, of a few tries. */
async function best(amount: number, run: () => unknown): Promise<number> {
  let most = 0;
  for (let i = 0; i < TRIES; i++) {
    const before = performance.now();
    await run();
    most = Math.max(most, (amount / (performance.now() - before)) * 1000);
  }
  return most;
}

/**
 * Reads memory with all threads. They look for a byte that is not there: that is the C library's `memchr`, which reaches
 * what a loop of AVX-512 loads does (35 to 39 GB/s where this was tried). The runtime's reductions reach 27 of them, and a
 * loop over a typed array less; and a product of our own would be measured against itself.
 */
async function reader(threads: number): Promise<() => Promise<unknown>> {
  const memory = new SharedArrayBuffer(BYTES);
  new Uint8Array(memory).fill(1);
  const bytes = BYTES / threads;
  const workers = Array.from({ length: threads }, (_, i) => {
    const workerData: Part = { memory, from: Math.floor(i * bytes), bytes: Math.floor(bytes) };
    return new Worker(new URL(import.meta.url), { workerData });
  });
  const answers = () => workers.map((worker) => new Promise((resolve) => worker.once("message", resolve)));
  await Promise.all(answers());
  return () => {
    const done = Promise.all(answers());
    for (const worker of workers) worker.postMessage("read");
    return done;
  };
}

/** Bytes times signed bytes is what processors have instructions for: faster than milora's and the runtime's 4-bit products. */
function product(op: "MatMul" | "MatMulInteger", x: DType, w: DType, y: DType): () => void {
  const [left, right, result] = [Tensor.allocate(x, [M, K]), Tensor.allocate(w, [K, N]), Tensor.allocate(y, [M, N])];
  (left.data as Float32Array).fill(1);
  (right.data as Float32Array).fill(1);
  const model = testModel({
    inputs: { x: [x, [M, K]] },
    outputs: { y: [y, [M, N]] },
    nodes: [{ op, inputs: ["x", "w"], outputs: ["y"] }],
    external: { w: [w, [K, N]] },
  });
  const session = Session.create(model, { initializers: new Map([["w", right]]) });
  const binding = session.bind().input("x", left).output("y", result);
  return () => session.run(binding);
}

if (isMainThread) {
  await serve(async () => {
    const threads = Number(process.argv[2]);
    configureRuntime({ threads });
    const read = await reader(threads);
    const int8 = product("MatMulInteger", "uint8", "int8", "int32");
    const float32 = product("MatMul", "float32", "float32", "float32");
    const operations = 2 * M * K * N;
    const round = async (): Promise<Ceilings> => ({
      bytes: await best(BYTES, read),
      int8: await best(operations, int8),
      float32: await best(operations, float32),
    });
    return { info: {}, round };
  });
} else {
  const { memory, from, bytes } = workerData as Part;
  const part = Buffer.from(memory, from, bytes);
  parentPort!.on("message", () => parentPort!.postMessage(part.indexOf(2)));
  parentPort!.postMessage("ready");
}
