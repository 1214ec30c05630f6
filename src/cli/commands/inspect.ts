/** @file `milora inspect`: what an adapter holds and learned, why one is refused, and parameter counts of known shapes. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Command, Option } from "commander";
import { z } from "zod";
import { InputError, readJson, sum } from "../../base/index.ts";
import {
  Adapter,
  CURVE_RANGE,
  type LearnedActivation,
  learnedActivations,
  type Method,
  methodOf,
} from "../../methods/index.ts";
import { type BackboneConfig, readBackboneConfig, SHAPES, type ShapeName } from "../../models/index.ts";
import { collect, examples, integer, jsonFlag, templateFlag } from "../flags.ts";
import { layerNorms } from "../inspect/facts.ts";
import { inferBackbone } from "../inspect/infer.ts";
import { printRouting, routingOf } from "../inspect/routing.ts";
import { plot } from "../plot.ts";
import { parseSettings } from "../settings.ts";
import { grouped, oneLine, paint, print, printJson, table } from "../terminal.ts";

interface Flags {
  readonly adapter?: string;
  readonly model?: string;
  readonly shape?: ShapeName;
  readonly method: string;
  readonly set?: string[];
  readonly data?: string;
  readonly template: string;
  readonly limit?: number;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .addOption(new Option("--adapter <dir>", "the adapter to look into").conflicts("shape"))
      .option("--model <dir>", "its backbone; without it the sizes are read off the adapter")
      .addOption(
        new Option("--shape <name>", "count parameters for a known model instead").choices(Object.keys(SHAPES)),
      )
      .option("--method <name>", "with --shape or --model alone: the method to count for", "milora")
      .option("--set <key=value>", "with --method: a setting of the method, e.g. top_k=1; may be repeated", collect)
      .addOption(
        new Option("--data <file>", "with --adapter and --model: what its routers do with these rows").conflicts(
          "shape",
        ),
      )
      .addOption(templateFlag())
      .addOption(new Option("--limit <n>", "with --data: the first n rows only").argParser(integer(1)))
      .addOption(jsonFlag())
      .action(inspect),
    [
      "milora inspect --adapter runs/demo/subjects-milora/best",
      "milora inspect --adapter DIR --model assets/tiny-llama --json",
      "milora inspect --adapter runs/subjects/best --model assets/tiny-llama --data assets/data/subjects/dev.jsonl",
      "milora inspect --shape llama-2-7b --method milora --set top_k=1",
    ],
  );
}

async function inspect(flags: Flags): Promise<void> {
  if (flags.data !== undefined && (flags.adapter === undefined || flags.model === undefined)) {
    throw new InputError("FLAG_INVALID", "--data", "needs --adapter and --model");
  }
  if (flags.adapter !== undefined) await inspectAdapter(flags.adapter, flags);
  else countFor(flags);
}

function countFor(flags: Flags): void {
  const backbone = flags.shape ? SHAPES[flags.shape] : flags.model ? readBackboneConfig(flags.model) : undefined;
  if (!backbone) throw new InputError("FLAG_INVALID", "inspect", "needs --adapter, --shape or --model");
  const method = methodOf(flags.method);
  const config = method.newConfig(parseSettings(flags.set ?? []), backbone);
  const parameters = countParameters(method, config, backbone);
  if (flags.json) printJson({ method: method.name, shape: flags.shape ?? flags.model, config, parameters });
  else {
    print(`${paint("bold", method.name)} on ${flags.shape ?? flags.model}\n`);
    print(parameterTable(parameters));
  }
}

interface Parameters {
  readonly tunable: Readonly<Record<string, number>> & { readonly total: number };
  readonly activated: Readonly<Record<string, number>> & { readonly total: number };
}

function countParameters(method: Method, config: unknown, backbone: BackboneConfig): Parameters {
  const counts = method.countParameters(config, backbone);
  const withTotal = (parts: Readonly<Record<string, number>>) => ({
    ...parts,
    total: sum(Object.values(parts)),
  });
  return { tunable: withTotal(counts.tunable), activated: withTotal(counts.activated) };
}

function parameterTable({ tunable, activated }: Parameters): string {
  const rows = Object.keys(tunable).map((part) => [part, grouped(tunable[part]!), grouped(activated[part] ?? 0)]);
  return table(["parameters", "tunable", "activated"], rows);
}

async function inspectAdapter(directory: string, flags: Flags): Promise<void> {
  let adapter: Adapter;
  try {
    adapter = Adapter.load(directory, backboneOf(directory, flags.model));
  } catch (error) {
    if (error instanceof InputError) explainRefusal(directory, error, flags);
    throw error;
  }
  using loaded = adapter;
  const { method, config, backbone } = loaded;
  const parameters = countParameters(method, config, backbone);
  const norms = layerNorms(loaded);
  const curves = learnedActivations(loaded.tensors.keys(), (key) => loaded.values(key));
  const { data, model, template, limit } = flags;
  const asked = data !== undefined && model !== undefined;
  const routing = asked ? await routingOf({ adapter: directory, model, data, template, limit }) : undefined;
  if (flags.json) {
    printJson({
      refused: false,
      method: method.name,
      peft_type: method.peftType,
      config,
      structure: Object.fromEntries(method.structure?.(config, backbone) ?? []),
      digest: loaded.digest,
      parameters,
      norms: Object.fromEntries([...norms].map(([layer, parts]) => [layer, Object.fromEntries(parts)])),
      activations: curves.map(({ layer, block, deviation, f }) => ({
        layer,
        ...(block && { block }),
        max_deviation_from_gelu: deviation,
        points: sample(f),
      })),
      ...(routing && { routing }),
    });
    return;
  }
  const width = backbone.hiddenSize > 0 ? ` of width ${backbone.hiddenSize}` : ""; // vectors and prefixes do not tell
  print(`${paint("bold", method.name)} adapter, ${backbone.numLayers} layers${width}`);
  print(`digest ${loaded.digest}\n`);
  print(`${parameterTable(parameters)}\n`);
  print(configText(config));
  const structure = method.structure?.(config, backbone);
  if (structure) print(`\nwhat was found\n${structureTable(structure)}`);
  print(`\nsize of the learned changes (‖B·A‖ of each module; the norm of other tensors)\n${normTable(norms)}`);
  if (curves.length) print(`\n${drawCurves(curves)}`);
  if (routing) printRouting(routing, data!);
}

/** Of a config.json only its shape is needed, so inspecting does not read gigabytes of weights. */
function backboneOf(directory: string, model: string | undefined): BackboneConfig {
  if (!existsSync(directory)) throw new InputError("FILE_UNREADABLE", directory, "no such directory");
  // A broken config is told before anything about the tensors.
  readJson(join(directory, "adapter_config.json"), z.looseObject({}));
  return model === undefined ? inferBackbone(directory) : readBackboneConfig(model);
}

function explainRefusal(directory: string, { code, problems }: InputError, flags: Flags): void {
  if (flags.json) {
    printJson({ refused: true, code, problems });
    return;
  }
  print(
    `${paint("bold", directory)} is refused (${code}), ${problems.length === 1 ? "1 problem" : `${problems.length} problems`}:`,
  );
  for (const problem of problems) print(`  - ${oneLine(problem)}`);
}

function configText(config: unknown): string {
  const entries = Object.entries(config as Record<string, unknown>).filter(([, value]) => value !== null);
  const width = Math.max(...entries.map(([key]) => key.length));
  const text = (value: unknown) => (typeof value === "string" ? value : JSON.stringify(value));
  return entries.map(([key, value]) => `${paint("dim", key.padEnd(width))}  ${oneLine(text(value))}`).join("\n");
}

/** Layers by modules. */
function structureTable(found: ReadonlyMap<string, string>): string {
  const places = [...found].map(([path, word]) => ({ ...placeOf(path), word }));
  const parts = [...new Set(places.map(({ part }) => part))];
  const layers = [...new Set(places.map(({ layer }) => layer))].sort((a, b) => a - b);
  const wordAt = (layer: number, part: string) =>
    places.find((place) => place.layer === layer && place.part === part)?.word ?? "–";
  return table(
    ["layer", ...parts],
    layers.map((layer) => [String(layer), ...parts.map((part) => wordAt(layer, part))]),
  );
}

function placeOf(path: string): { layer: number; part: string } {
  const names = path.split(".");
  return { layer: Number(names.find((name) => /^\d+$/.test(name))), part: names.at(-1)! };
}

function normTable(norms: ReadonlyMap<number, ReadonlyMap<string, number>>): string {
  const parts = [...new Set([...norms.values()].flatMap((row) => [...row.keys()]))];
  const rows = [...norms].sort(([a], [b]) => a - b);
  const cells = (row: ReadonlyMap<string, number>) => parts.map((part) => row.get(part)?.toFixed(3) ?? "–");
  return table(
    ["layer", ...parts],
    rows.map(([layer, row]) => [layer < 0 ? "–" : String(layer), ...cells(row)]),
  );
}

function sample(f: (x: number) => number): [number, number][] {
  const [from, to] = CURVE_RANGE;
  return Array.from({ length: 25 }, (_, i) => from + ((to - from) * i) / 24).map((x) => [x, f(x)]);
}

const PLOT = { from: CURVE_RANGE[0], to: CURVE_RANGE[1], low: -1, high: 3, width: 18, height: 5 } as const;

/** As many plots beside each other as the terminal takes. */
function drawCurves(curves: readonly LearnedActivation[]): string {
  const gap = 3;
  const perLine = Math.max(1, Math.floor(((process.stdout.columns ?? 80) + gap) / (PLOT.width + gap)));
  const blocks: string[] = ["learned activations on [-3, 3], with the largest distance from GELU"];
  for (let start = 0; start < curves.length; start += perLine) {
    const line = curves.slice(start, start + perLine);
    const titles = line.map(({ layer, block, deviation }) =>
      `${block ? `${layer} ${block.replace("self_", "")}` : `layer ${layer}`}  ${deviation.toExponential(1)}`.padEnd(
        PLOT.width,
      ),
    );
    const drawn = line.map(({ f }) => plot(f, PLOT));
    const rows = Array.from({ length: PLOT.height }, (_, y) =>
      drawn.map((plotted) => plotted[y]!).join(" ".repeat(gap)),
    );
    blocks.push([titles.join(" ".repeat(gap)).trimEnd(), ...rows].join("\n"));
  }
  return blocks.join("\n");
}
