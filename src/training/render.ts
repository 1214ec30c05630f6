/** @file From a row to token ids: the prompt templates, and a boundary that training and inference place alike. */
import { InputError } from "../base/index.ts";
import type { Tokenizer } from "../models/index.ts";
import type { Message, Row } from "./rows.ts";
import { PromptTemplate, type Template } from "./template.ts";

export interface RenderedRow {
  /** Exactly what inference feeds for this row. */
  readonly prompt: number[];
  /** What is learned; ends with the end-of-sequence token. */
  readonly response: number[];
}

/**
 * The prompts of Stanford Alpaca with a line break after the last heading, as Alpaca-LoRA has them, which is where
 * LLM-Adapters' prompts come from. (LLM-Adapters' own copy is indented by 16 blanks and carries a linter's comment
 * inside the text; both are slips that its released weights alone could need.)
 */
export function alpacaPrompt(instruction: string, input: string): string {
  return input === ""
    ? `Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n${instruction}\n\n### Response:\n`
    : `Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n${instruction}\n\n### Input:\n${input}\n\n### Response:\n`;
}

/** A row reduced to what every template starts from. */
interface Parts {
  readonly instruction: string;
  readonly input: string;
  readonly output: string;
  /** All turns before the answer. */
  readonly turns: readonly Message[];
}

function partsOf(row: Row): Parts {
  if (row.form === "messages") {
    const turns = row.messages.slice(0, -1);
    const user = turns.at(-1);
    return { instruction: user?.content ?? "", input: "", output: row.messages.at(-1)?.content ?? "", turns };
  }
  if (row.form === "free") return { instruction: "", input: "", output: row.output, turns: [] };
  const instruction = row.form === "instruction" ? row.instruction : row.prompt;
  const input = row.form === "instruction" ? row.input : "";
  const output = row.form === "instruction" ? row.output : row.response;
  const content = input === "" ? instruction : `${instruction}\n\n${input}`;
  return { instruction, input, output, turns: [{ role: "user", content }] };
}

/** The text that is learned, without the end-of-sequence token. */
export function outputOf(row: Row): string {
  return partsOf(row).output;
}

interface RenderedText {
  readonly prompt: string;
  readonly response: string;
  /** Whether the tokenizer puts its own special tokens (`<s>`) in front; chat templates write theirs out. */
  readonly special: boolean;
}

function renderText(row: Row, tokenizer: Tokenizer, template: Template): RenderedText {
  const { instruction, input, output, turns } = partsOf(row);
  if (template instanceof PromptTemplate) return { prompt: template.render(row), response: output, special: true };
  if (row.form === "free") {
    const problem = `has no "instruction", "prompt" or "messages" for the template "${template}"`;
    throw new InputError("DATA_INVALID", `row ${row.number}`, problem);
  }
  if (template === "chat") {
    const prompt = tokenizer.applyChatTemplate([...turns], { addGenerationPrompt: true });
    const whole = tokenizer.applyChatTemplate([...turns, { role: "assistant", content: output }], {
      addGenerationPrompt: false,
    });
    // The template's own end of the assistant's turn belongs to the response, save the blanks after it. Templates
    // that write past answers otherwise than they ask for new ones leave only the bare text.
    const rest = whole.startsWith(prompt) ? whole.slice(prompt.length) : "";
    const tail = rest.startsWith(output) ? rest.slice(output.length).trimEnd() : "";
    const response = rest.startsWith(output) || rest === "" ? output + tail : rest.trimEnd();
    return { prompt, response, special: false };
  }
  if (row.form === "messages" && turns.length !== 1) {
    throw new InputError(
      "DATA_INVALID",
      `row ${row.number}`,
      `is a conversation of ${turns.length + 1} messages, which the template "${template}" cannot show; use "chat"`,
    );
  }
  const plain = input === "" ? instruction : `${instruction}\n\n${input}`;
  return { prompt: template === "alpaca" ? alpacaPrompt(instruction, input) : plain, response: output, special: true };
}

/** The prompt's ids alone, for inference: the same as `renderRow(…).prompt`. */
export function renderPrompt(row: Row, tokenizer: Tokenizer, options: { template: Template }): number[] {
  const { prompt, special } = renderText(row, tokenizer, options.template);
  return tokenizer.encode(prompt, { addSpecialTokens: special });
}

function startsWith(ids: readonly number[], head: readonly number[]): boolean {
  return ids.length >= head.length && head.every((id, index) => ids[index] === id);
}

/** Texts that rarely grow together with what follows them. */
const ANCHORS = ["\n", ":", "a", "0"];

/**
 * Ids of `response` after `prompt`. Prompt and response are tokenised together, and where the prompt's ids come out
 * unchanged at the front, the rest is the response. Where a token would span the boundary, inference could never
 * produce it after this prompt, so the response is tokenised by itself, behind an anchor that is taken away again
 * (tokenizers of the SentencePiece kind would else put a blank in front of a text that begins a sequence).
 */
function responseIds(tokenizer: Tokenizer, promptIds: readonly number[], text: RenderedText): number[] {
  const joint = tokenizer.encode(text.prompt + text.response, { addSpecialTokens: text.special });
  if (startsWith(joint, promptIds)) return joint.slice(promptIds.length);
  for (const anchor of ANCHORS) {
    const head = tokenizer.encode(anchor, { addSpecialTokens: false });
    const anchored = tokenizer.encode(anchor + text.response, { addSpecialTokens: false });
    if (startsWith(anchored, head)) return anchored.slice(head.length);
  }
  return tokenizer.encode(text.response, { addSpecialTokens: false });
}

/** Renders and tokenises a row. Throws `InputError` when the template cannot show it or has no end token to append. */
export function renderRow(row: Row, tokenizer: Tokenizer, options: { template: Template }): RenderedRow {
  const text = renderText(row, tokenizer, options.template);
  const prompt = tokenizer.encode(text.prompt, { addSpecialTokens: text.special });
  const response = responseIds(tokenizer, prompt, text);
  const ends = tokenizer.eosTokenIds;
  const end = ends[0];
  if (end === undefined) {
    throw new InputError(
      "TOKENIZER_INVALID",
      "tokenizer",
      "names no end-of-sequence token, so responses would never end",
    );
  }
  if (!ends.includes(response.at(-1) ?? -1)) response.push(end);
  return { prompt, response };
}
