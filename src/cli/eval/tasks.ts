/** @file `milora eval --tasks`: measures tasks one after the other, prints the table, keeps rows and results. */
import { join } from "node:path";
import { InputError, version } from "../../base/index.ts";
import {
  checkData,
  conversationOf,
  defaultProtocol,
  evaluateTask,
  findTasks,
  groupResults,
  harnessTable,
  hasSameShots,
  loadTasks,
  PROTOCOLS,
  RowStore,
  summaryOf,
  type TaskResult,
  writeResults,
} from "../../evaluation/index.ts";
import { templateOf } from "../../training/index.ts";
import { onInterrupt } from "../interrupt.ts";
import { open } from "../open.ts";
import { note, print, printJson, table } from "../terminal.ts";
import { evaluateConversations } from "./conversation.ts";
import { CONVERSATION_FLAGS, type EvalFlags, flagNames } from "./flags.ts";
import { trainingFor, warnOfOverlap } from "./overlap.ts";
import { rowProgress } from "./progress.ts";

/** Most bytes of what was read of shots: 1,024 tokens of a backbone like LLaMA-2 7B. */
const SHOTS_BYTES = 2 ** 30;

export async function evaluateTasks(flags: EvalFlags, names: string): Promise<void> {
  if (names === "list") return list(flags);
  const { numFewshot: shots, output } = flags;
  const started = new Date();
  const wanted = names
    .split(",")
    .map((name) => name.trim())
    .filter(Boolean);
  const protocol = flags.protocol ?? (await defaultProtocol(wanted));
  const tasks = await findTasks(wanted, protocol);
  if (tasks.length === 0) throw new InputError("FLAG_INVALID", "--tasks", "names no task; `list` shows them all");
  if (flags.data !== undefined && tasks.length > 1)
    throw new InputError("FLAG_INVALID", "--data", `holds rows of one task, --tasks names ${tasks.length}`);
  if (flags.metric === "perplexity") throw new InputError("FLAG_INVALID", "--metric", "is for --data without --tasks");
  if (tasks.some(conversationOf)) return await evaluateConversations(flags, tasks);
  const others = flagNames(flags, CONVERSATION_FLAGS);
  if (others.length) throw new InputError("FLAG_INVALID", others.join(", "), "is for conversations, such as mt_bench");
  const data = { directory: flags.dataDir, rows: flags.data };
  await checkData(tasks, { protocol, data, shots });
  const training = await trainingFor(flags);
  const template = templateOf(flags.template ?? "alpaca");
  const alike = tasks.some((task) => hasSameShots(task, protocol, shots));
  using opened = await open(flags, (adapter) => ({
    ...(flags.batchSize !== undefined && { maxBatch: flags.batchSize }),
    // Under a method that is not causal, a beginning depends on what follows it, and nothing can be shared.
    ...(alike && (adapter?.method.properties.causal ?? true) && { prefixCache: { bytes: SHOTS_BYTES } }),
  }));
  using interrupt = onInterrupt(output === undefined ? undefined : "stopping; the same command goes on from here …");
  const store = new RowStore(output === undefined ? undefined : join(output, "rows.jsonl"));
  const results: TaskResult[] = [];
  for (const task of tasks) {
    results.push(
      await rowProgress(task.name, (onProgress) =>
        evaluateTask(opened.engine, task, {
          protocol,
          data,
          shots,
          template,
          training,
          store,
          onProgress,
          adapter: opened.adapter,
          limit: flags.limit,
          beams: flags.beams,
          maxNewTokens: flags.maxNewTokens,
          seed: flags.seed,
          signal: interrupt.signal,
        }),
      ),
    );
  }
  const facts = {
    model: flags.model,
    adapter: flags.adapter ?? null,
    limit: flags.limit ?? null,
    batchSize: opened.engine.maxBatch,
    milora: version,
    started,
  };
  if (output !== undefined) {
    const written = writeResults(output, results, facts);
    note(`written to ${output}: ${written.length + 1} files`);
  }
  if (flags.json) {
    const rows = ({ samples }: TaskResult) =>
      samples.map(({ row, document, output, answers, scores }) => ({
        row,
        target: document.target,
        output,
        answers,
        scores,
      }));
    const { model, adapter } = facts;
    const shown = results.map((result) => ({ ...summaryOf(result), samples: rows(result) }));
    printJson({ model, adapterDirectory: adapter, groups: groupResults(results), tasks: shown });
  } else print(harnessTable(results));
  for (const { task, overlap, rows } of results) warnOfOverlap(task, overlap, rows);
}

async function list(flags: EvalFlags): Promise<void> {
  const tasks = [...(await loadTasks()).values()];
  if (flags.json) {
    const facts = tasks.map(({ name, title, groups = [], protocols, data, credit }) => ({
      task: name,
      title,
      groups,
      protocols: PROTOCOLS.filter((protocol) => protocols[protocol]),
      source: data.hub ?? data.bundled,
      credit,
    }));
    printJson({ tasks: facts });
    return;
  }
  const cells: string[][] = [];
  const seen = new Set<string>();
  for (const task of tasks) {
    const group = task.groups?.[0];
    if (group !== undefined && seen.has(group)) continue;
    if (group !== undefined) seen.add(group);
    const members = group === undefined ? [task] : tasks.filter(({ groups }) => groups?.[0] === group);
    const title = group === undefined ? task.title : `${members.length} tasks, ${task.name} and so on`;
    const protocols = PROTOCOLS.filter((protocol) => task.protocols[protocol]).join(", ");
    cells.push([group ?? task.name, protocols, task.credit.licence, title]);
  }
  print(table(["task", "protocols", "licence", ""], cells));
}
