/** @file From documents to what the model reads: shots in front, the template, and tokens cut as the harness cuts them. */
import { InputError } from "../base/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { alpacaPrompt, renderPrompt, type Template } from "../training/index.ts";
import { PythonRandom } from "./python-random.ts";
import type { Document, RowForm } from "./task.ts";

/** What a shot's prompt is followed by. */
function answerOf(form: RowForm, document: Document): string {
  return form.kind === "choice" ? choicesOf(form, document)[document.gold]! : document.target;
}

/** What may follow a document's prompt. */
export function choicesOf(form: RowForm, document: Document): readonly string[] {
  return (form.kind === "choice" ? form.choices?.(document) : undefined) ?? document.choices;
}

const delimiterOf = (form: RowForm): string => (form.kind === "choice" ? " " : form.delimiter);

/** Contexts of documents, in their order: the description, shots from the pool, the question. */
export function contextsOf(
  form: RowForm,
  documents: readonly Document[],
  shots: { readonly count: number; readonly pool: readonly Document[]; readonly seed: number },
): string[] {
  const { count, pool } = shots;
  const { order, spare = 0 } = form.shots;
  const random = new PythonRandom(shots.seed);
  const needed = count > 0 && order === "sampled" ? count + spare : count;
  if (pool.length < needed) {
    throw new InputError("FLAG_INVALID", "--num-fewshot", `asks for ${count} shots, there are rows for ${pool.length}`);
  }
  return documents.map((document) => {
    const drawn = count > 0 && order === "sampled" ? random.sample(pool, needed) : pool;
    const solved = drawn
      .slice(0, count)
      .map((shot) => `${form.prompt(shot)}${delimiterOf(form)}${answerOf(form, shot)}\n\n`);
    return (form.description ?? "") + solved.join("") + form.prompt(document);
  });
}

/** Prompt of an instruction in the template that adapters are trained with. */
export function instructionTokens(tokenizer: Tokenizer, instruction: string, template: Template): number[] {
  const row = { number: 1, form: "instruction", instruction, input: "", output: "" } as const;
  return renderPrompt({ ...row, fields: { instruction } }, tokenizer, { template });
}

/**
 * Prompt of a conversation's next turn. Under `alpaca` the turns stand one after the other, each with its headings and
 * a blank line between; the first is what adapters are trained with.
 * @param turns what the user said; one more than `answers`
 */
export function conversationTokens(
  tokenizer: Tokenizer,
  turns: readonly string[],
  answers: readonly string[],
  template: Template,
): number[] {
  if (template === "none") {
    throw new InputError("FLAG_INVALID", "--template", "cannot show a conversation; use chat, alpaca or a Jinja file");
  }
  if (template === "alpaca") {
    const [first, ...rest] = turns;
    const later = rest.map((turn, i) => `${answers[i]}\n\n### Instruction:\n${turn}\n\n### Response:\n`);
    return tokenizer.encode(alpacaPrompt(first!, "") + later.join(""));
  }
  const messages = turns.flatMap((content, i) => [
    { role: "user", content } as const,
    { role: "assistant", content: answers[i] ?? "" } as const, // the last is what is asked for, and not shown
  ]);
  return renderPrompt({ number: 1, form: "messages", messages, fields: { messages } }, tokenizer, { template });
}

/** Prompt to be continued: too long a one loses its beginning. */
export function continuedTokens(tokenizer: Tokenizer, text: string, room: number): number[] {
  return tokenizer.encode(text).slice(-room);
}

export interface ScoringPair {
  readonly prompt: readonly number[];
  readonly continuation: readonly number[];
}

/**
 * Tokens of a context and a continuation, tokenised together; blanks at the end of the context count to the
 * continuation. Of what is too long the beginning is cut off.
 * @param positions that the model can read; the last token is not read, only looked up
 */
export function encodePair(
  tokenizer: Tokenizer,
  context: string,
  continuation: string,
  positions: number,
): ScoringPair {
  const kept = context.trimEnd();
  const whole = tokenizer.encode(context + continuation);
  const head = tokenizer.encode(kept);
  let own = whole.slice(head.length);
  let prompt = head;
  if (kept === "") {
    own = tokenizer.encode(context + continuation, { addSpecialTokens: false });
    const [start] = [tokenizer.bosTokenId ?? tokenizer.eosTokenIds[0] ?? own[0]!];
    if (start === own[0]) own = own.slice(1);
    prompt = [start];
  }
  if (own.length === 0 || own.length > positions) {
    const shown = JSON.stringify(continuation.slice(0, 40));
    const problem = own.length === 0 ? "adds no token to its question" : `has ${own.length} tokens, more than fit`;
    throw new InputError("DATA_INVALID", "a choice", `${shown} ${problem}`);
  }
  return { prompt: prompt.slice(Math.max(0, prompt.length + own.length - positions - 1)), continuation: own };
}
