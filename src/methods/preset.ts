/** @file A method under a second name with some options fixed, where a variant needs no code of its own. */
import { InputError } from "../base/index.ts";
import type { Method } from "./method.ts";

/** Creates adapters with the fixed options only, and takes the files that have them. */
export function preset<C>(method: Method<C>, name: string, fixed: Readonly<Partial<C>>): Method<C> {
  const options = Object.entries(fixed);
  return {
    ...method,
    name,
    claims: (config) => (method.claims?.(config) ?? true) && options.every(([key, value]) => config[key] === value),
    newConfig(given, backbone, run) {
      const problems = options
        .filter(([key, value]) => given[key] !== undefined && given[key] !== value)
        .map(([key, value]) => `${key}: is ${JSON.stringify(value)} in ${name}; use ${method.name} to choose it`);
      if (problems.length) throw new InputError("CONFIG_INVALID", name, problems);
      return method.newConfig({ ...given, ...fixed }, backbone, run);
    },
  };
}
