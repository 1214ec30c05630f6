/**
 * @file What the engine costs besides the computation: calls into ONNX Runtime, and building, exporting and loading
 * graphs.
 */

// The graphs measured are the ones that generation and training run, so they are taken from inside those rooms.
import { buildProgram } from "../src/generation/graphs.ts";
import { exportOnnx, Graph, grad, relu, type Value } from "../src/graph/index.ts";
import type { Adapter } from "../src/methods/index.ts";
import { Backbone } from "../src/models/index.ts";
import { configureRuntime, PrepackedWeights, Session, Tensor } from "../src/runtime/index.ts";
import { buildObjectives, type Objective } from "../src/training/objective.ts";
import { randomAdapter } from "./lib/adapters.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions } from "./lib/options.ts";
import { report, spread, table } from "./lib/report.ts";
import { shapeOf } from "./lib/shapes.ts";
import { type Summary, summarize } from "./lib/statistics.ts";

const USAGE = `npm run engine-overhead -- [options]
  --shapes A,B    shapes whose graphs are built (tiny,smollm2-135m)
  --runs N        runs a round of the empty graph (2000)`;

/** A chain of `nodes` trivial nodes on a vector of 16, so that a run is nothing but overhead. */
function chain(nodes: number): Session {
  const graph = new Graph("chain");
  let value: Value = graph.input("x", "float32", [16]);
  for (let i = 0; i < nodes; i++) value = relu(value);
  graph.output("y", value);
  return Session.create(exportOnnx(graph));
}

/** Microseconds a run, one number a round. */
async function runCosts(rounds: number, runs: number): Promise<Record<string, number[]>> {
  using x = Tensor.allocate("float32", [16]);
  using y = Tensor.allocate("float32", [16]);
  using one = chain(1);
  using many = chain(101);
  using oneBinding = one.bind().input("x", x).output("y", y);
  using manyBinding = many.bind().input("x", x).output("y", y);
  const cases: Record<string, () => Promise<void> | void> = {
    "run (blocking)": () => one.run(oneBinding),
    runAsync: () => one.runAsync(oneBinding),
    "call (own tensors)": () => {
      for (const tensor of Object.values(one.call({ x }))) tensor.dispose();
    },
    "bind, run, dispose": () => {
      using binding = one.bind().input("x", x).output("y", y);
      one.run(binding);
    },
    "100 more nodes": () => many.run(manyBinding),
  };
  const micros: Record<string, number[]> = Object.fromEntries(Object.keys(cases).map((name) => [name, []]));
  for (let round = 0; round <= rounds; round++) {
    for (const [name, run] of Object.entries(cases)) {
      const before = performance.now();
      for (let i = 0; i < runs; i++) {
        const pending = run();
        if (pending) await pending;
      }
      const each = ((performance.now() - before) * 1000) / runs;
      if (round > 0) micros[name]?.push(each); // the first round warms up
    }
  }
  return micros;
}

function trainingGraph(backbone: Backbone, adapter: Adapter): Graph {
  const graph = new Graph("gradients");
  const [{ crossEntropy, parameters }] = buildObjectives(graph, backbone, [{ adapter }]) as [Objective];
  const gradients = grad(crossEntropy, [...parameters.values()]);
  adapter.specs.forEach(({ key }, i) => {
    graph.output(`gradient.${key}`, gradients[i] as Value);
  });
  return graph;
}

interface Stages {
  readonly build: number[];
  readonly export: number[];
  readonly session: number[];
  /** The same graph again, weights already packed: what a further session costs. */
  readonly again: number[];
  modelBytes: number;
}

/** Milliseconds of each stage from nothing to a session, for decoding and for training. */
function graphCosts(shape: string, rounds: number): Record<string, Stages> {
  const costs: Record<string, Stages> = {};
  const config = shapeOf(shape);
  for (const [weights, kinds] of [
    ["int4", ["decode bare", "decode LoRA", "decode MiLoRA k=3"]],
    ["float32", ["train LoRA"]],
  ] as const) {
    using backbone = Backbone.random(config, { weights });
    for (const kind of kinds) {
      const stages: Stages = { build: [], export: [], session: [], again: [], modelBytes: 0 };
      const method = kind.includes("MiLoRA") ? "milora" : kind.includes("LoRA") ? "lora" : undefined;
      using adapter = method === undefined ? undefined : randomAdapter(method, { r: 32 }, config);
      for (let round = 0; round <= rounds; round++) {
        using prepacked = new PrepackedWeights();
        const times = [performance.now()];
        const graph =
          kind === "train LoRA" && adapter
            ? trainingGraph(backbone, adapter)
            : buildProgram(backbone, { kind: "decode", adapter });
        times.push(performance.now());
        const model = exportOnnx(graph);
        times.push(performance.now());
        const options = { initializers: backbone.initializers(), prepacked };
        const session = Session.create(model, options);
        times.push(performance.now());
        const second = Session.create(model, options);
        times.push(performance.now());
        second.dispose();
        session.dispose();
        stages.modelBytes = model.length;
        if (round === 0) continue; // the first round warms up
        for (const [i, stage] of (["build", "export", "session", "again"] as const).entries()) {
          stages[stage].push((times[i + 1] as number) - (times[i] as number));
        }
      }
      costs[kind] = stages;
    }
  }
  return costs;
}

await main(async () => {
  const options = parseOptions(USAGE, {
    shapes: { type: "string", default: "tiny,smollm2-135m" },
    runs: { type: "string", default: "2000" },
  });
  const rounds = integer(options.rounds ?? 7, "rounds");
  const runs = integer(options.runs, "runs");
  const threads = integer(options.threads, "threads");
  const machine = await inspectMachine({ allowBusy: options["allow-busy"] === true });
  configureRuntime({ threads });

  const micros = await runCosts(rounds, runs);
  const run: Record<string, Summary> = Object.fromEntries(
    Object.entries(micros).map(([name, values]) => [name, summarize(values)]),
  );
  const base = micros["run (blocking)"] ?? [];
  const perNode = summarize((micros["100 more nodes"] ?? []).map((value, i) => (value - (base[i] ?? 0)) / 100));
  const sections = [
    table(
      ["a run of an empty graph", "µs"],
      [
        ...Object.entries(run).map(([name, summary]) => [name, spread(summary, 1)]),
        ["each further small node", spread(perNode)],
      ],
    ),
  ];
  const graphs: Record<string, object> = {};
  for (const shape of String(options.shapes).split(",")) {
    const costs = graphCosts(shape, rounds);
    sections.push(
      table(
        [`graphs of ${shape}, ms`, "build", "export", "session", "same again", "model KiB"],
        Object.entries(costs).map(([kind, { build, export: exported, session, again, modelBytes }]) => [
          kind,
          ...[build, exported, session, again].map((values) => spread(summarize(values), 1)),
          (modelBytes / 1024).toFixed(0),
        ]),
      ),
    );
    graphs[shape] = Object.fromEntries(
      Object.entries(costs).map(([kind, { modelBytes, ...stages }]) => [
        kind,
        { modelBytes, ...Object.fromEntries(Object.entries(stages).map(([name, v]) => [name, summarize(v)])) },
      ]),
    );
  }
  const data = { settings: { rounds, runs, threads }, runMicroseconds: run, perNodeMicroseconds: perNode, graphs };
  report("engine-overhead", machine, rounds < 5, sections.join("\n\n"), data);
});
