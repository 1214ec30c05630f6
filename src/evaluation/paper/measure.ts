/** @file Measures one cell with the adapter that it is about. */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { MiloraError } from "../../base/index.ts";
import { Adapter } from "../../methods/index.ts";
import { RoutingTally } from "../../training/index.ts";
import { evaluateTask } from "../evaluate.ts";
import { instructionTokens } from "../prompts.ts";
import { formOf, loadTasks, rowFormOf } from "../registry.ts";
import { RowStore } from "../store.ts";
import { protocolOf } from "./data.ts";
import { judgedOf, TEMPLATE } from "./judging.ts";
import type { PlannedCell } from "./plan.ts";
import type { SpeedRequest } from "./speed.ts";
import type { Cell, CellOf, Scope, Values } from "./study.ts";
import type { CellContext } from "./work.ts";

export interface MeasureContext extends CellContext {
  readonly scope: Scope;
}

/** What the cell gives, as it is kept. */
export async function measureCell(planned: PlannedCell, context: MeasureContext): Promise<Values[Cell["kind"]]> {
  const { cell } = planned;
  if (cell.kind === "rows") return await context.data.count(cell.source, context.scope.tasksOf(cell.source));
  if (cell.kind === "speed") return await speedOf(planned, cell, context);
  const engine = await context.models.engine(planned.model, planned.holding);
  using adapter = Adapter.load(context.store.adapter(planned.run!.id), engine.backbone.config);
  if (cell.kind === "routes") return await routesOf(planned, cell, adapter, context);
  if (cell.kind === "judged") return await judgedOf(planned, engine, adapter, context);
  const { scope, data, store, signal, onProgress } = context;
  const task = (await loadTasks()).get(cell.task)!;
  const form = rowFormOf(task, protocolOf(task));
  const longest = form.kind === "generate" ? Math.min(form.maxNewTokens, scope.maxNewTokens ?? form.maxNewTokens) : 0;
  const { samples, ...result } = await evaluateTask(engine, task, {
    protocol: protocolOf(task),
    data: { directory: data.directory },
    limit: scope.limit,
    beams: scope.beams,
    ...(longest > 0 && { maxNewTokens: longest }),
    template: TEMPLATE,
    adapter,
    store: new RowStore(store.rowsPath(planned.run!.id)),
    training: { skipped: "table 6 says what training and test rows have in common" },
    signal,
    onProgress,
  });
  const { metric, filter, value, interval } = result.metrics.at(-1)!;
  return {
    metric: filter === "none" ? metric : `${metric} (${filter})`,
    value,
    interval: [...interval],
    scores: samples.map(({ scores }) => scores[filter]![metric]!),
    answers: samples.map(({ answers }) => answers[filter]!),
    result,
  };
}

async function promptsOf(planned: PlannedCell, name: string, { data, models, scope }: MeasureContext) {
  const { tokenizer } = await models.backbone(planned.model, planned.holding);
  const task = (await loadTasks()).get(name)!;
  const form = formOf(task, protocolOf(task));
  const { documents } = await data.test(task);
  return documents.slice(0, scope.limit).map((document) => ({
    prompt: instructionTokens(tokenizer, form.prompt(document), TEMPLATE),
    label: form.kind === "generate" && form.answer ? form.answer(document) : document.target,
  }));
}

async function routesOf(
  planned: PlannedCell,
  cell: CellOf<"routes">,
  adapter: Adapter,
  context: MeasureContext,
): Promise<Values["routes"]> {
  const { signal, onProgress } = context;
  const engine = await context.models.engine(planned.model, planned.holding);
  const rows = await promptsOf(planned, cell.task, context);
  const results = await engine.generate(
    rows.map(({ prompt }) => ({ prompt, adapter, options: { maxNewTokens: 1 }, ...(signal && { signal }) })),
    onProgress,
  );
  signal?.throwIfAborted();
  const { experts } = adapter.method.routing!(adapter.config);
  const tally = new RoutingTally(experts);
  for (const [i, { route }] of results.entries()) {
    const gates = route!.experts.flatMap((active) => experts.map((name) => (active.includes(name) ? 1 : 0)));
    tally.add(rows[i]!.label, gates, route!.probabilities.flat());
  }
  return tally.metrics()!;
}

/** Rows whose prompts are continued; the same for all adapters. */
const TIMED_PROMPTS = 4;

/** The built worker, from src/ and dist/ alike: a fresh process holds one backbone, one adapter and nothing else. */
const WORKER = fileURLToPath(new URL("../../../dist/evaluation/paper/speed-worker.js", import.meta.url));

async function speedOf(planned: PlannedCell, cell: CellOf<"speed">, context: MeasureContext): Promise<Values["speed"]> {
  const { scope, store, signal } = context;
  const rows = await promptsOf(planned, scope.tasks[0]!, context);
  const request: SpeedRequest = {
    model: planned.model,
    device: scope.device,
    adapter: store.adapter(planned.run!.id),
    prompts: rows.slice(0, TIMED_PROMPTS).map(({ prompt }) => prompt),
    beams: cell.beams,
    tokens: scope.speedTokens,
    rounds: scope.speedRounds,
  };
  return await new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [WORKER], { stdio: ["pipe", "pipe", "pipe"], ...(signal && { signal }) });
    let [out, complaint] = ["", ""];
    child.stdout.on("data", (text) => {
      out += text;
    });
    child.stderr.on("data", (text) => {
      complaint += text;
    });
    child.on("error", (error) => reject(signal?.aborted ? (signal.reason as Error) : error));
    child.on("close", (code) => {
      if (code === 0) resolve(JSON.parse(out) as Values["speed"]);
      else
        reject(
          new MiloraError("CELLS_FAILED", `the timed process ended with code ${code}: ${complaint.trim()}`, {
            exitCode: 1,
          }),
        );
    });
    child.stdin.on("error", () => {}); // it ended before it was told: `close` says how
    child.stdin.end(JSON.stringify(request));
  });
}
