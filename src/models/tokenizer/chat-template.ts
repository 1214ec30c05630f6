/** @file A model's chat template: from messages to the text that the model was trained on. */
import { InputError, reasonOf } from "../../base/index.ts";
import type { TokenizerConfig } from "./config.ts";
import { JinjaTemplate } from "./jinja.ts";
import { strftime } from "./strftime.ts";

/** A message. Templates know of more fields than these two; those that are given are passed on. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

export interface ChatTemplateOptions {
  /** End with the opening of the assistant's turn (default false). */
  readonly addGenerationPrompt?: boolean;
  /** JSON schemas of functions that the model may call. */
  readonly tools?: readonly unknown[];
  /** Jinja to use instead of the model's own. */
  readonly template?: string | undefined;
  /** Texts to answer from. */
  readonly documents?: readonly unknown[];
  /** More variables of the model's template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** The date that templates show (default: now). */
  readonly now?: Date;
}

type Named = ReadonlyMap<string, string>;

export class ChatTemplate {
  readonly #templates: Named;
  readonly #compiled = new Map<string, JinjaTemplate>();
  readonly #special: Readonly<Record<string, string>>;
  readonly #where: string;

  /** @param special spellings of the special tokens by name */
  constructor(templates: Named, special: Readonly<Record<string, string>>, where: string) {
    this.#templates = templates;
    this.#special = special;
    this.#where = where;
  }

  get exists(): boolean {
    return this.#templates.size > 0;
  }

  /** @throws InputError `CHAT_TEMPLATE_MISSING`, `CHAT_TEMPLATE_INVALID`, `CHAT_REJECTED` */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions): string {
    const template =
      options.template === undefined
        ? this.#compile(options.tools !== undefined)
        : this.#compiledOf(options.template, options.template);
    const { now } = options;
    try {
      return template.render({
        strftime_now: (format: string) => strftime(now ?? new Date(), format),
        ...this.#special,
        ...options.variables,
        messages: messages.map((message) => ({ ...message })),
        tools: options.tools ?? null,
        documents: options.documents ?? null,
        add_generation_prompt: options.addGenerationPrompt ?? false,
      });
    } catch (error) {
      const problem = `the chat template does not take these messages: ${reasonOf(error)}`;
      throw new InputError("CHAT_REJECTED", this.#where, problem, { cause: error });
    }
  }

  /** Of several the one named default; with tools the one for them. */
  #compile(withTools: boolean): JinjaTemplate {
    const names = withTools ? ["tool_use", "default"] : ["default"];
    const name = names.find((known) => this.#templates.has(known)) ?? [...this.#templates.keys()][0];
    if (name === undefined) {
      const problem = "has no chat template; use a chat model, or give a plain prompt";
      throw new InputError("CHAT_TEMPLATE_MISSING", this.#where, problem);
    }
    return this.#compiledOf(name, this.#templates.get(name)!);
  }

  #compiledOf(name: string, source: string): JinjaTemplate {
    let compiled = this.#compiled.get(name);
    try {
      compiled ??= new JinjaTemplate(source);
    } catch (error) {
      throw new InputError("CHAT_TEMPLATE_INVALID", this.#where, reasonOf(error), { cause: error });
    }
    this.#compiled.set(name, compiled);
    return compiled;
  }
}

/** Templates by name; one that stands alone is the default. */
export function templatesOf(config: TokenizerConfig, file: string | undefined): Named {
  const given = file ?? config.chat_template ?? [];
  if (typeof given === "string") return new Map([["default", given]]);
  return new Map(given.map(({ name, template }) => [name, template]));
}
