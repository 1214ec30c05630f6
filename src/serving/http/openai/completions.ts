/** @file POST /v1/completions. */
import { randomUUID } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { GenerationResult, PromptLogprob } from "../../../generation/index.ts";
import { parseRequest, RequestError } from "../errors.ts";
import type { Services } from "../services.ts";
import { type Ask, type AskedToken, best, Call, checkMost, usageOf } from "./call.ts";
import { drained, mapped } from "./merge.ts";
import { choicesOf } from "./options.ts";
import { type CompletionBody, completionSchema, withoutNulls } from "./schemas.ts";
import { sendStream } from "./stream.ts";
import { type CompletionLogprobs, LogprobsWriter, TokenNames } from "./tokens.ts";

interface Choice {
  readonly index: number;
  readonly text: string;
  readonly logprobs: CompletionLogprobs | null;
  readonly finish_reason: "stop" | "length" | null;
}

/** A prompt, with the text that `echo` gives back. */
interface Prompt {
  readonly tokens: readonly number[];
  readonly text: string;
}

export async function completions(services: Services, request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
  const { maxPrompts, maxTokens } = services.config.http;
  const body = parseRequest(completionSchema, withoutNulls(request.body));
  const call = await Call.begin(services, request, reply, body.model);
  checkMost(body.max_tokens, maxTokens, "max_tokens");
  const prompts = await promptsOf(body, call, maxPrompts);
  const { n, candidates, options } = choicesOf(body, services.engine.backbone.config.eosTokenIds);
  const { logprobs, echo } = body;
  if (body.max_tokens === 0 && !echo) throw new RequestError("max_tokens: 0 goes only with echo", "max_tokens");
  const ask: Ask = {
    prompts: prompts.map(({ tokens }) => tokens),
    candidates,
    options: { ...options, maxNewTokens: body.max_tokens, ...(logprobs && { topLogprobs: logprobs }) },
    // A prompt that is not continued has to be asked something.
    ...(((echo && logprobs !== undefined) || body.max_tokens === 0) && { promptLogprobs: { top: logprobs ?? 0 } }),
  };
  const head = {
    ...{ id: `cmpl-${randomUUID()}`, object: "text_completion" },
    ...{ created: Math.floor(Date.now() / 1000), model: body.model },
  };
  const form = new CompletionForm(body, call, prompts, n);
  if (body.stream) return sendStream(services, request, reply, form.pieces(head, ask));
  const results = await drained(call.answer(ask));
  return {
    ...head,
    choices: form.whole(results),
    usage: usageOf(ask.prompts, results),
    ...call.extras(body, results),
  };
}

/** Milliseconds of tokenizing before others have their turn. */
const TURN_MS = 10;

async function promptsOf({ prompt, ...body }: CompletionBody, call: Call, most: number): Promise<Prompt[]> {
  const list = typeof prompt === "string" || typeof prompt[0] === "number" || prompt.length === 0 ? [prompt] : prompt;
  if (list.length > most) throw new RequestError(`prompt: ${list.length} prompts, at most ${most}`, "prompt");
  const prompts: Prompt[] = [];
  let since = performance.now();
  for (const one of list as (string | number[])[]) {
    if (performance.now() - since > TURN_MS) {
      await setImmediate();
      call.signal.throwIfAborted();
      since = performance.now();
    }
    if (typeof one === "string") prompts.push({ tokens: call.encode(one, body.add_special_tokens), text: one });
    else prompts.push({ tokens: one, text: body.echo ? (call.tokenizer?.decode(one) ?? "") : "" });
  }
  return prompts;
}

/** Answers in the form of /v1/completions, whole or in pieces. */
class CompletionForm {
  readonly #body: CompletionBody;
  readonly #call: Call;
  readonly #prompts: readonly Prompt[];
  readonly #n: number;
  readonly #names: TokenNames;
  /** What lists the probabilities of choices that have begun, by index. */
  readonly #begun = new Map<number, LogprobsWriter | undefined>();
  readonly #promptLogprobs = new Map<number, readonly (PromptLogprob | null)[]>();

  constructor(body: CompletionBody, call: Call, prompts: readonly Prompt[], n: number) {
    this.#body = body;
    this.#call = call;
    this.#prompts = prompts;
    this.#n = n;
    this.#names = new TokenNames(call.tokenizer, body.return_tokens_as_token_ids);
  }

  whole(results: readonly (readonly GenerationResult[])[]): Choice[] {
    return results.flatMap((all, prompt) =>
      best(all, this.#n).map((result, choice): Choice => {
        const writer = this.#writer(prompt, result.promptLogprobs);
        result.tokens.forEach((token, at) => {
          writer?.push(token, { token, logprob: result.logprobs[at]!, top: result.topLogprobs?.[at] ?? [] });
        });
        return {
          index: prompt * this.#n + choice,
          text: this.#echo(prompt) + result.text,
          logprobs: writer?.take() ?? null,
          finish_reason: reasonOf(result),
        };
      }),
    );
  }

  async *pieces(head: object, ask: Ask): AsyncGenerator<object> {
    const results = yield* mapped(this.#call.answer(ask), (token) => {
      const choice = this.#piece(token);
      return choice && { ...head, choices: [choice] };
    });
    for (const [prompt, all] of results.entries()) {
      for (const [choice, result] of all.entries()) {
        const index = prompt * this.#n + choice;
        if (this.#begun.has(index)) continue; // it has got its end with its last token
        const logprobs = this.#writer(prompt, result.promptLogprobs)?.take() ?? null;
        const finish_reason = reasonOf(result);
        yield { ...head, choices: [{ index, text: this.#echo(prompt), logprobs, finish_reason }] };
      }
    }
    const extras = this.#call.extras(this.#body, results);
    const usage = this.#body.stream_options?.include_usage ? { usage: usageOf(ask.prompts, results) } : {};
    if (Object.keys(extras).length + Object.keys(usage).length > 0) yield { ...head, choices: [], ...usage, ...extras };
  }

  /** What one token adds; undefined where there is nothing to tell yet. */
  #piece({ index: prompt, value }: AskedToken): Choice | undefined {
    const index = prompt * this.#n + value.choice;
    if (value.promptLogprobs) this.#promptLogprobs.set(prompt, value.promptLogprobs);
    const fresh = !this.#begun.has(index);
    if (fresh) this.#begun.set(index, this.#writer(prompt, this.#promptLogprobs.get(prompt)));
    const writer = this.#begun.get(index);
    writer?.push(value.token, { token: value.token, logprob: value.logprob, top: value.top ?? [] });
    const text = (fresh ? this.#echo(prompt) : "") + value.text;
    if (text === "" && !writer && !value.finishReason) return undefined;
    return { index, text, logprobs: writer?.take() ?? null, finish_reason: value.finishReason ?? null };
  }

  #echo(prompt: number): string {
    return this.#body.echo ? this.#prompts[prompt]!.text : "";
  }

  /** Lists a choice's probabilities, its prompt's in front where they are to be told. */
  #writer(prompt: number, probabilities: readonly (PromptLogprob | null)[] | undefined): LogprobsWriter | undefined {
    const { logprobs, echo } = this.#body;
    if (logprobs === undefined) return undefined;
    const writer = new LogprobsWriter(this.#names, this.#call.tokenizer, { continuation: !echo });
    const listed = echo ? this.#prompts[prompt]!.tokens : [];
    for (const [at, token] of listed.entries()) writer.push(token, probabilities?.[at] ?? null);
    return writer;
  }
}

function reasonOf({ finishReason }: GenerationResult): "stop" | "length" {
  return finishReason === "stop" ? "stop" : "length";
}
