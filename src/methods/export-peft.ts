/** @file Writes adapters for Hugging Face PEFT, which reads what milora saves of the methods that PEFT has. */
import { existsSync } from "node:fs";
import { InputError } from "../base/index.ts";
import type { Adapter } from "./adapter.ts";

/** The methods of PEFT among ours, by `peft_type`. */
const PEFT_TYPES: readonly string[] = ["LORA", "ADALORA", "IA3", "PREFIX_TUNING"];

/**
 * Writes an adapter in the form that PEFT loads: a checkpoint's form for training becomes the one for use.
 * @returns keys of the tensors that were asked for by the adapter's config
 * @throws InputError ADAPTER_NOT_EXPORTABLE where PEFT has no such method, OUTPUT_EXISTS
 */
export async function exportPeft(adapter: Adapter, output: string): Promise<string[]> {
  const { method, specs } = adapter;
  if (!PEFT_TYPES.includes(method.peftType)) {
    const instead = method.properties.mergeable
      ? "; fold it into the backbone with `milora adapters merge`, transformers reads the result"
      : "; it runs in milora only";
    throw new InputError("ADAPTER_NOT_EXPORTABLE", method.name, `PEFT has no such method${instead}`);
  }
  if (existsSync(output)) {
    throw new InputError("OUTPUT_EXISTS", output, "exists already; remove it or choose another directory");
  }
  await adapter.save(output);
  return specs.map(({ key }) => key);
}
