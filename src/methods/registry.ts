/** @file The table of methods. A further method is one folder and one line here. */
import { MiloraError } from "../base/index.ts";
import { lora } from "./lora/index.ts";
import type { Method } from "./method.ts";
import { milora } from "./milora/index.ts";

/** All methods by name. */
export const methods: ReadonlyMap<string, Method> = new Map(
  ([lora, milora] as unknown as readonly Method[]).map((method) => [method.name, method]),
);

/** The method of that name. Throws `MiloraError` METHOD_UNKNOWN. */
export function methodOf(name: string): Method {
  const method = methods.get(name);
  if (method) return method;
  throw new MiloraError("METHOD_UNKNOWN", `unknown method "${name}"; there are ${[...methods.keys()].join(", ")}`);
}

/** The method that reads adapters of this `peft_type`. Throws `MiloraError` METHOD_UNKNOWN. */
export function methodOfPeftType(peftType: string): Method {
  for (const method of methods.values()) if (method.peftType === peftType) return method;
  const known = [...methods.values()].map((method) => method.peftType).join(", ");
  throw new MiloraError("METHOD_UNKNOWN", `peft_type "${peftType}" is not supported; there are ${known}`);
}
