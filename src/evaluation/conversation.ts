/** @file Answers to conversations: turn by turn through the engine, each with the answers before it in its prompt. */
import { InputError, sum } from "../base/index.ts";
import type { Engine } from "../generation/index.ts";
import type { Tokenizer } from "../models/index.ts";
import type { Template } from "../training/index.ts";
import { loadSplit } from "./load.ts";
import { type Ask, checkRoom, type Decoding, measure, type TaskOptions } from "./measure.ts";
import { conversationTokens } from "./prompts.ts";
import { conversationOf } from "./registry.ts";
import { digestOf } from "./store.ts";
import type { ConversationForm, Document, Protocol, Task } from "./task.ts";

export interface ConversationOptions extends TaskOptions {
  /** Default: the model's chat template where it has one, else alpaca. */
  readonly template?: Template | undefined;
  /** Always the most likely tokens, instead of the task's temperatures. */
  readonly greedy?: boolean | undefined;
  /** More than one needs `greedy`. Default 1. */
  readonly beams?: number | undefined;
  /** Default the task's own, at most a quarter of the context. */
  readonly maxNewTokens?: number | undefined;
  /** Of drawing tokens. Default 1234. */
  readonly seed?: number | undefined;
}

export interface AnsweredRow {
  /** In the split, from 0. */
  readonly row: number;
  readonly document: Document;
  /** One for each turn, without blanks around it. */
  readonly answers: readonly string[];
}

/** Everything that decides the answers, and the answers. */
export interface ConversationResult {
  readonly task: string;
  readonly title: string;
  readonly protocol: Protocol;
  readonly version: number;
  readonly data: { readonly source: string; readonly split: string; readonly digest: string; readonly rows: number };
  /** Rows answered. */
  readonly rows: number;
  /** sha256 of all prompts as token ids, turn by turn. */
  readonly promptDigest: string;
  readonly template: Template;
  /** By category. */
  readonly decoding: Readonly<Record<string, Decoding>>;
  readonly backbone: string;
  readonly adapter: string | null;
  readonly weights: Engine["backbone"]["weights"];
  /** Prompts that lost their beginning because they do not fit. */
  readonly cut: number;
  /** Answers that ended because they were as long as they may be. */
  readonly unfinished: number;
  readonly samples: readonly AnsweredRow[];
}

/** What un-tuned models go on with after an answer: the next heading of the template. */
const ALPACA_STOP = ["\n### Instruction:"];

function conversationTemplate(tokenizer: Tokenizer): Template {
  return tokenizer.hasChatTemplate ? "chat" : "alpaca";
}

/** @throws InputError TASK_UNSUPPORTED for a task that is no conversation */
export function conversationForm(task: Task): { readonly form: ConversationForm; readonly protocol: Protocol } {
  const form = conversationOf(task);
  if (!form)
    throw new InputError("TASK_UNSUPPORTED", task.name, "is no conversation: its rows are marked by themselves");
  const [protocol] = Object.entries(task.protocols).find(([, own]) => own === form)!;
  return { form, protocol: protocol as Protocol };
}

/**
 * Answers all turns of a task's rows. What the store has is not asked again, for each turn by itself.
 * @throws InputError DATA_INVALID, DATA_UNAVAILABLE, FILE_UNREADABLE, FLAG_INVALID, CHAT_TEMPLATE_MISSING
 */
export async function answerTask(
  engine: Engine,
  task: Task,
  options: ConversationOptions = {},
): Promise<ConversationResult> {
  const { form, protocol } = conversationForm(task);
  const { adapter, onProgress } = options;
  const { tokenizer, digest, weights } = engine.backbone;
  const whole = await loadSplit(task, form.split, { ...options.data, signal: options.signal });
  const documents = whole.documents.slice(0, options.limit);
  const template = options.template ?? conversationTemplate(tokenizer);
  const context = engine.contextOf(adapter);
  const decodings = documents.map((document) => decodingOf(form, document, template, context, options));
  const answers: string[][] = documents.map(() => []);
  const total = sum(documents.map(({ turns }) => turns!.length));
  const prompts: (readonly number[])[] = [];
  let [done, cut, unfinished] = [0, 0, 0];
  for (let turn = 0; done < total; turn++) {
    const rows = [...documents.keys()].filter((row) => turn < documents[row]!.turns!.length);
    const asks = rows.map((row): Ask & { kind: "generate" } => {
      const decoding = decodings[row]!;
      const turns = documents[row]!.turns!.slice(0, turn + 1);
      const room = context - decoding.maxNewTokens;
      const tokens = conversationTokens(tokenizer, turns, answers[row]!, template);
      if (tokens.length > room) cut++;
      return { kind: "generate", prompt: tokens.slice(-room), decoding };
    });
    const outputs = await measure(engine, asks, {
      ...options,
      about: { task: task.name, protocol, turn: turn + 1 },
      onProgress: (finished) => onProgress?.(done + finished, total),
    });
    for (const [i, output] of outputs.entries()) {
      if (output.kind !== "generate") throw new Error("a conversation was measured as choices");
      answers[rows[i]!]!.push(output.text.trim());
      if (output.tokens >= asks[i]!.decoding.maxNewTokens) unfinished++;
    }
    prompts.push(...asks.map(({ prompt }) => prompt));
    done += rows.length;
  }
  return {
    task: task.name,
    title: task.title,
    protocol,
    version: form.version,
    data: { source: whole.source, split: form.split, digest: whole.digest, rows: whole.documents.length },
    rows: documents.length,
    promptDigest: digestOf(prompts),
    template,
    decoding: Object.fromEntries(documents.map(({ category }, row) => [category ?? task.name, decodings[row]!])),
    backbone: digest,
    adapter: adapter?.digest ?? null,
    weights,
    cut,
    unfinished,
    samples: documents.map((document, row) => ({ row, document, answers: answers[row]! })),
  };
}

function decodingOf(
  form: ConversationForm,
  document: Document,
  template: Template,
  context: number,
  { greedy = false, beams = 1, maxNewTokens, seed = 1234 }: ConversationOptions,
): Decoding {
  const temperature = greedy ? 0 : form.temperature(document);
  if (beams > 1 && !greedy) {
    throw new InputError(
      "FLAG_INVALID",
      "--beams",
      "searches for the likeliest answer, and this task draws; add --greedy",
    );
  }
  const most = maxNewTokens ?? Math.min(form.maxNewTokens, Math.floor(context / 4));
  checkRoom(most, context);
  const drawn = temperature > 0 ? { ...(form.topK !== undefined && { topK: form.topK }), seed } : {};
  return { beams, maxNewTokens: most, temperature, stop: template === "alpaca" ? ALPACA_STOP : [], ...drawn };
}
