/** @file The peer in Python: PyTorch with transformers and PEFT, where there is a Python that has them. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { benchmarksDirectory } from "./cache.ts";
import { shapeOf } from "./shapes.ts";

/** Arguments of the peer, for settings of a worker. */
export function peftArguments(settings: { readonly shape: string }): string[] {
  const script = join(benchmarksDirectory, "peers", "peft_bench.py");
  return [script, JSON.stringify({ ...settings, config: shapeOf(settings.shape) })];
}

export const PYTHON_HELP =
  "--python PATH   a Python with torch, transformers and peft (MILORA_PYTHON); else they are left out";

/** The Python to run the peer in, or why there is none. */
export function findPython(option: string | undefined): { readonly python?: string; readonly missing?: string } {
  const python = option ?? process.env.MILORA_PYTHON;
  if (python === undefined) return { missing: "give --python PATH or MILORA_PYTHON to measure it" };
  const { error, status, stderr } = spawnSync(python, ["-c", "import torch, transformers, peft"], { encoding: "utf8" });
  if (!error && status === 0) return { python };
  const reason = error ? `cannot be started (${error.message})` : stderr.trim().split("\n").at(-1);
  if (option !== undefined) throw new Error(`--python ${python}: ${reason}; it needs torch, transformers and peft`);
  return { missing: `${python}: ${reason}` };
}
