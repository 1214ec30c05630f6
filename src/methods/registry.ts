/** @file The table of methods. A further method is one folder and one line here; a variant of one may be a preset. */
import { InputError, MiloraError } from "../base/index.ts";
import { adalora } from "./adalora/index.ts";
import { bitfit } from "./bitfit/index.ts";
import { dora } from "./dora/index.ts";
import { full } from "./full/index.ts";
import { ia3 } from "./ia3/index.ts";
import { iapt } from "./iapt/index.ts";
import { learnedAdapter } from "./learned-adapter/index.ts";
import { lora } from "./lora/index.ts";
import type { Method } from "./method.ts";
import { milora } from "./milora/index.ts";
import { moelora } from "./moelora/index.ts";
import { pTuningV2 } from "./p-tuning-v2/index.ts";
import { parallelAdapter } from "./parallel-adapter/index.ts";
import { preset } from "./preset.ts";
import { ssp } from "./ssp/index.ts";

const midora = preset(milora, "midora", { use_dora: true });

/** All methods by name. Of several with one `peft_type` the first that claims a file has it. */
export const methods: ReadonlyMap<string, Method> = new Map(
  (
    [
      adalora,
      bitfit,
      dora,
      full,
      ia3,
      iapt,
      learnedAdapter,
      lora,
      midora,
      milora,
      moelora,
      parallelAdapter,
      pTuningV2,
      ssp,
    ] as unknown as readonly Method[]
  ).map((method) => [method.name, method]),
);

/** The method of that name. Throws `MiloraError` METHOD_UNKNOWN. */
export function methodOf(name: string): Method {
  const method = methods.get(name);
  if (method) return method;
  throw new MiloraError("METHOD_UNKNOWN", `unknown method "${name}"; there are ${[...methods.keys()].join(", ")}`);
}

/** The method of an adapter_config.json that lies at `path`, by its `peft_type`. @throws InputError METHOD_UNKNOWN */
export function methodOfConfig(config: Readonly<Record<string, unknown>>, path: string): Method {
  for (const method of methods.values()) {
    if (method.peftType === config.peft_type && (method.claims?.(config) ?? true)) return method;
  }
  const known = [...new Set([...methods.values()].map((method) => method.peftType))].join(", ");
  throw new InputError("METHOD_UNKNOWN", path, `peft_type "${config.peft_type}" is not supported; there are ${known}`);
}
