/** @file SSP (Hu et al. 2022, arXiv 2206.07382): a search for where LoRA and biases go, under a budget of parameters. */
import { parseWith } from "../../base/index.ts";
import { add, gemm, mul, split, type Value } from "../../graph/index.ts";
import type { BackboneConfig, Site } from "../../models/index.ts";
import { biasKey } from "../bitfit/index.ts";
import { loraKeys, loraLow, loraSpecs } from "../lora/index.ts";
import type { BuildContext, Method, ParameterSpec } from "../method.ts";
import { KEY_PREFIX } from "../peft.ts";
import { budgetOf, type Candidate, candidatesOf, configSchema, partsOf, type SspConfig, scalingOf } from "./config.ts";
import { chooseStructure, gateLogits, gatesOf } from "./gates.ts";

export type { SspConfig, Structure } from "./config.ts";

/** α of all candidates, [n]; there while searching. They are the outer variables of the bi-level loop. */
const GATES = `${KEY_PREFIX}ssp_gates`;

function specsOf({ site, kind }: Candidate, r: number): ParameterSpec[] {
  if (kind === "lora") return loraSpecs(site, r);
  return [{ key: biasKey(site), shape: [site.outFeatures], init: { kind: "zeros" }, group: "weights" }];
}

function parameters(config: SspConfig, backbone: BackboneConfig): ParameterSpec[] {
  const parts = partsOf(config, backbone).flatMap((part) => specsOf(part, config.r));
  if (config.structure !== null) return parts;
  const count = candidatesOf(config, backbone).length;
  return [...parts, { key: GATES, shape: [count], init: { kind: "zeros" }, group: "activation" }];
}

const nameOf = ({ site, kind }: Candidate): string => `${site.path}.${kind}`;

/** The gate of each candidate, [1] each, by `nameOf`; empty once the structure is found. */
function gates({ config, backbone, phase, parameter, derived }: BuildContext<SspConfig>): ReadonlyMap<string, Value> {
  if (config.structure !== null) return new Map();
  const candidates = candidatesOf(config, backbone);
  const shape = [candidates.length];
  const logits = derived("ssp.logits", shape, () => gateLogits(config, candidates, parameter(GATES)));
  const noise = phase.kind === "train" ? phase.noise?.("ssp", shape) : undefined;
  const values = split(gatesOf(logits, noise), 0, new Array<number>(candidates.length).fill(1));
  return new Map(candidates.map((candidate, i) => [nameOf(candidate), values[i]!]));
}

export const ssp: Method<SspConfig> = {
  name: "ssp",
  peftType: "SSP",
  configSchema,
  properties: { routed: false, mergeable: false, startsAsIdentity: true, packable: true, causal: true },
  activationLr: 1e-2,

  newConfig(options, backbone) {
    const config = parseWith(configSchema, { peft_type: "SSP", task_type: "CAUSAL_LM", ...options }, "ssp");
    partsOf(config, backbone);
    return { ...config, lora_alpha: config.lora_alpha ?? config.r };
  },

  parameters,

  countParameters(config, backbone) {
    const total = (kind: Candidate["kind"]) =>
      partsOf(config, backbone).reduce((sum, part) => sum + (part.kind === kind ? part.size : 0), 0);
    const counts: Record<string, number> =
      config.structure === null
        ? { budget: budgetOf(config, candidatesOf(config, backbone)) }
        : { lora: total("lora"), biases: total("bitfit") };
    return { tunable: counts, activated: counts };
  },

  isIdentity(config, backbone, values) {
    return partsOf(config, backbone).every(({ site, kind }) =>
      values(kind === "lora" ? loraKeys(site).b : biasKey(site)).every((v) => v === 0),
    );
  },

  structure(config, backbone) {
    if (config.structure === null) return undefined;
    const words = new Map<string, string>();
    const word = { lora: "LoRA", bitfit: "bias" };
    for (const { site, kind } of partsOf(config, backbone)) {
      words.set(site.path, [...(words.has(site.path) ? [words.get(site.path)] : []), word[kind]].join(" + "));
    }
    return words;
  },

  interim: (config) => config.structure === null,

  successor(config, backbone, { step, totalSteps, values }) {
    if (config.structure !== null || step < Math.ceil(config.search_ratio * totalSteps)) return undefined;
    // Drawn anew, as the paper trains what it has found.
    return { config: { ...config, structure: chooseStructure(config, backbone, values(GATES)) } };
  },

  lower({ config, backbone, values }) {
    if (config.structure === null) return undefined; // gates are part of the graph while it searches
    const parts = partsOf(config, backbone);
    const sites = new Map(parts.map(({ site }) => [site.path, site]));
    const has = (site: Site, kind: Candidate["kind"]) =>
      parts.some((part) => part.kind === kind && part.site.path === site.path);
    return [...sites.values()].map((site) => ({
      site,
      ...(has(site, "lora") && { low: loraLow(site, config.r, scalingOf(config), values) }),
      ...(has(site, "bitfit") && { bias: values(biasKey(site)) }),
    }));
  },

  build(context) {
    const { config, backbone, parameter } = context;
    const parts = new Set(partsOf(config, backbone).map(nameOf));
    const gate = gates(context);
    const scaling = scalingOf(config);
    return {
      hooks: {
        linear(site, x, y) {
          const [lora, bias] = [`${site.path}.lora`, `${site.path}.bitfit`];
          const gated = (name: string, value: Value) => (gate.has(name) ? mul(value, gate.get(name)!) : value);
          let result = y;
          if (parts.has(lora)) {
            const { a, b } = loraKeys(site);
            const low = gated(lora, gemm(x, parameter(a), { transB: true })); // [N, r]
            result = gemm(low, parameter(b), { c: result, transB: true, alpha: scaling }); // [N, out]
          }
          return parts.has(bias) ? add(result, gated(bias, parameter(biasKey(site)))) : result;
        },
      },
    };
  },
};
