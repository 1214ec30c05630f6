/** @file How a chat is put to the model: in its own template, in Alpaca's, or in one that the server was given. */
import { readFileSync } from "node:fs";
import { InputError, reasonOf } from "../../../base/index.ts";
import { JinjaTemplate } from "../../../models/index.ts";

export interface ChatFormat {
  /** Jinja; undefined for the model's own. */
  readonly template: string | undefined;
  /** Whether the tokenizer puts its begin-of-sequence token in front; templates of chat models do so themselves. */
  readonly specialTokens: boolean;
}

/**
 * The prompt that adapters are trained with by default, later turns under the same headings. Line ends stand in
 * expressions: those after a tag are dropped.
 */
const ALPACA = [
  "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}",
  "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
  "{% endif %}{{ '\\n\\n' }}{% for message in messages %}",
  "{% if message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}",
  "{% elif message.role == 'assistant' %}{{ '### Response:\\n' + message.content + '\\n\\n' }}",
  "{% elif not loop.first %}{{ raise_exception('a system message can only be the first') }}{% endif %}{% endfor %}",
  "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
].join("");

/**
 * @param given `alpaca`, or the path of a Jinja file; undefined for the model's own template
 * @throws InputError FILE_UNREADABLE, CHAT_TEMPLATE_INVALID
 */
export function chatFormatOf(given: string | undefined): ChatFormat {
  if (given === undefined) return { template: undefined, specialTokens: false };
  if (given === "alpaca") return { template: ALPACA, specialTokens: true };
  let template: string;
  try {
    template = readFileSync(given, "utf8");
  } catch (error) {
    const problem = `${reasonOf(error)}; give a Jinja file, or alpaca`;
    throw new InputError("FILE_UNREADABLE", `chatTemplate ${given}`, problem, { cause: error });
  }
  try {
    new JinjaTemplate(template);
  } catch (error) {
    throw new InputError("CHAT_TEMPLATE_INVALID", given, reasonOf(error), { cause: error });
  }
  return { template, specialTokens: false };
}
