/** @file The demo from beginning to end. */
import { existsSync, rmSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { sum, writeFileAtomic } from "../../base/index.ts";
import { type ExactMatchResult, type LabelledRow, loadLabelledRows } from "../../evaluation/index.ts";
import { Engine } from "../../generation/index.ts";
import { Adapter } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import { configureRuntime, runtimeVersion } from "../../runtime/index.ts";
import { loadRows, renderPrompt } from "../../training/index.ts";
import { onInterrupt } from "../interrupt.ts";
import { startProgress } from "../progress.ts";
import { duration, note, print, printJson } from "../terminal.ts";
import {
  dataFile,
  FULL,
  METHODS,
  type MethodName,
  MODEL,
  QUICK,
  type Scale,
  TENANTS,
  type Tenant,
  TITLES,
} from "./plan.ts";
import * as show from "./show.ts";
import { differentRows, forgetRuns, measure, measureSpeed, routesOf, type Trained, trainAdapter } from "./work.ts";

export interface DemoFlags {
  readonly output: string;
  readonly quick?: boolean;
  readonly threads?: number;
  readonly json?: boolean;
}

/** Prompts per tenant whose routes are drawn, and whose answers are printed. */
const PICTURED = 4;
const SAMPLED = 2;

/** All that belongs to one tenant in the demo. */
interface Workplace {
  readonly tenant: Tenant;
  readonly rows: readonly LabelledRow[];
  readonly trained: Map<MethodName, Trained>;
  readonly adapters: Map<MethodName, Adapter>;
  readonly answers: Map<MethodName | "bare", ExactMatchResult>;
}

export async function runDemo(flags: DemoFlags): Promise<void> {
  if (flags.threads !== undefined) configureRuntime({ threads: flags.threads });
  const started = performance.now();
  const scale = flags.quick ? QUICK : FULL;
  const say = flags.json ? note : print;
  const results = join(flags.output, "results.json");
  if (existsSync(results)) {
    forgetRuns(flags.output);
    rmSync(results);
  }
  using interrupt = onInterrupt("stopping; the same command goes on from here …");
  const { signal } = interrupt;
  using backbone = await Backbone.load(MODEL);
  const places = await Promise.all(TENANTS.map((tenant) => openPlace(tenant, scale)));
  using _ = { [Symbol.dispose]: () => places.forEach(closePlace) };
  say("milora: two tenants share one frozen backbone, each with adapters of its own\n");
  say(show.tenantTable(await Promise.all(places.map((place) => factsOf(place, scale)))));

  say(show.heading(1, "Training"));
  for (const place of places) {
    for (const method of METHODS) {
      const progress = (steps: number) =>
        startProgress(`tenant ${place.tenant.name} ${TITLES[method].padEnd(6)}`, steps);
      const trained = await trainAdapter(place.tenant, method, {
        scale,
        output: flags.output,
        backbone,
        signal,
        progress,
      });
      place.trained.set(method, trained);
      say(show.trainedLine(place.tenant, method, trained));
    }
  }

  using engine = Engine.create(backbone);
  for (const { adapters, trained } of places) {
    for (const [method, { adapterDirectory }] of trained)
      adapters.set(method, Adapter.load(adapterDirectory, backbone.config));
  }
  say(show.heading(2, "Accuracy on held-out rows: the generated answer is right (95 % interval)"));
  for (const place of places) await answerAll(place, engine, backbone, signal);
  const accuracies = places.map(({ tenant, answers }) => ({ tenant, accuracy: accuracyOf(answers) }));
  say(show.accuracyTable(accuracies));

  say(show.heading(3, "Experts that MiLoRA's routers chose: layers down, modules across"));
  const routes = [];
  for (const { tenant, rows, adapters, trained } of places) {
    const adapter = adapters.get("milora")!;
    const pictured = differentRows(rows, PICTURED);
    const reports = await routesOf(engine, backbone.tokenizer, pictured, adapter);
    const labels = pictured.map((row) => row.answer);
    say(show.routePicture(tenant, labels, reports, adapter.method.routing!(adapter.config).experts));
    const { routing } = trained.get("milora")!;
    if (routing) say(show.routingLine(tenant, routing));
    routes.push({ tenant: tenant.name, labels, routes: reports, ...(routing && { dev: routing }) });
  }

  say(show.heading(4, "Some answers"));
  for (const place of places) for (const sample of samplesOf(place)) say(show.sampleText(sample));

  say(show.heading(5, "Parameters, and speed of one sequence (medians of rounds in turn)"));
  const first = places[0]!;
  const parameters = { lora: countOf(first.adapters.get("lora")!), milora: countOf(first.adapters.get("milora")!) };
  const prompt = renderPrompt(first.rows[0]!, backbone.tokenizer, { template: "alpaca" });
  const contestants = [
    ["bare", undefined],
    ...METHODS.map((method) => [method, first.adapters.get(method)!] as const),
  ] as const;
  using bar = startProgress("timing", scale.speedRounds);
  const speeds = await measureSpeed(engine, prompt, contestants, scale, { signal, progress: bar });
  bar.stop();
  say(show.costTable(parameters, speeds));

  const seconds = (performance.now() - started) / 1000;
  const report = {
    quick: flags.quick ?? false,
    seconds,
    machine: {
      cpu: cpus()[0]?.model ?? "unknown",
      cores: cpus().length,
      node: process.version,
      onnxruntime: runtimeVersion(),
    },
    backbone: backbone.digest,
    tenants: places.map((place) => tenantReport(place)),
    routes,
    parameters,
    speed: Object.fromEntries(speeds),
  };
  writeFileAtomic(results, `${JSON.stringify(report, null, 2)}\n`);
  say(`\n${duration(seconds)} in all · adapters and every answer: ${flags.output}`);
  if (flags.json) printJson(report);
}

async function openPlace(tenant: Tenant, scale: Scale): Promise<Workplace> {
  const rows = (await loadLabelledRows(dataFile(tenant.task, "test"))).slice(0, scale.testRows);
  return { tenant, rows, trained: new Map(), adapters: new Map(), answers: new Map() };
}

function closePlace({ adapters }: Workplace): void {
  for (const adapter of adapters.values()) adapter.dispose();
}

async function factsOf({ tenant, rows }: Workplace, scale: Scale): Promise<show.TenantFacts> {
  const trainRows = await loadRows(dataFile(tenant.task, "train"));
  const question = rows[0]!.form === "instruction" ? rows[0]!.instruction.split("\n")[0]! : "";
  return {
    tenant,
    question,
    trainRows:
      scale.maxSteps === undefined ? trainRows.length : Math.min(trainRows.length, scale.batchSize * scale.maxSteps),
    testRows: rows.length,
    answers: new Set(trainRows.map((row) => row.answer)).size,
  };
}

async function answerAll(
  { tenant, rows, adapters, answers }: Workplace,
  engine: Engine,
  backbone: Backbone,
  signal: AbortSignal,
) {
  for (const name of ["bare", ...METHODS] as const) {
    const adapter = name === "bare" ? undefined : adapters.get(name)!;
    using progress = startProgress(`tenant ${tenant.name} ${TITLES[name].padEnd(6)}`, rows.length);
    answers.set(name, await measure(engine, backbone.tokenizer, rows, adapter, { signal, progress }));
  }
}

function accuracyOf(answers: Workplace["answers"]): show.TenantAccuracy["accuracy"] {
  const of = (name: MethodName | "bare") => answers.get(name)!.accuracy;
  return { bare: of("bare"), lora: of("lora"), milora: of("milora") };
}

function samplesOf({ tenant, rows, answers }: Workplace): show.Sample[] {
  return differentRows(rows, SAMPLED).map((row) => {
    const outputOf = (name: MethodName | "bare") => answers.get(name)!.rows[rows.indexOf(row)]!.output;
    const passage = row.form === "instruction" ? row.instruction.split("\n\n")[1]! : "";
    const outputs = { bare: outputOf("bare"), lora: outputOf("lora"), milora: outputOf("milora") };
    return { tenant, passage, answer: row.answer, outputs };
  });
}

function countOf(adapter: Adapter): show.Parameters {
  const { tunable, activated } = adapter.method.countParameters(adapter.config, adapter.backbone);
  return { tunable: sum(Object.values(tunable)), activated: sum(Object.values(activated)) };
}

function tenantReport({ tenant, trained, adapters, answers }: Workplace) {
  return {
    tenant: tenant.name,
    task: tenant.task,
    training: Object.fromEntries(
      [...trained].map(([method, { result, adapterDirectory, firstLoss, lastLoss, tokensPerSecond }]) => [
        method,
        {
          adapter: adapterDirectory,
          digest: adapters.get(method)!.digest,
          steps: result.steps,
          seconds: result.seconds,
          dev_perplexity: result.best?.devPerplexity,
          first_loss: firstLoss,
          last_loss: lastLoss,
          tokens_per_second: tokensPerSecond,
        },
      ]),
    ),
    answers: Object.fromEntries(answers),
  };
}
