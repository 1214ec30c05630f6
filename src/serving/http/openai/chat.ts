/** @file POST /v1/chat/completions. */
import { randomUUID } from "node:crypto";
import type { FastifyReply, FastifyRequest } from "fastify";
import { InputError } from "../../../base/index.ts";
import type { ChatMessage } from "../../../models/index.ts";
import { parseRequest, RequestError } from "../errors.ts";
import type { Services } from "../services.ts";
import { type Ask, best, Call, checkMost, usageOf } from "./call.ts";
import type { ChatFormat } from "./chat-format.ts";
import { drained, mapped } from "./merge.ts";
import { choicesOf } from "./options.ts";
import { type ChatBody, chatSchema, withoutNulls } from "./schemas.ts";
import { sendStream } from "./stream.ts";
import { type ChatTokenLogprob, TokenNames } from "./tokens.ts";

type Finish = "stop" | "length" | null;

export async function chatCompletions(
  services: Services,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<unknown> {
  const { maxTokens, defaultTokens } = services.config.http;
  const body = parseRequest(chatSchema, withoutNulls(request.body));
  const call = await Call.begin(services, request, reply, body.model);
  const asked = body.max_completion_tokens ?? body.max_tokens;
  if (asked !== undefined) checkMost(asked, maxTokens, "max_completion_tokens");
  if (body.top_logprobs !== undefined && !body.logprobs) {
    throw new RequestError("top_logprobs: goes only with logprobs", "top_logprobs");
  }
  const prompt = promptOf(body, call, services.chat);
  const { n, candidates, options } = choicesOf(body, services.engine.backbone.config.eosTokenIds);
  const maxNewTokens = asked ?? Math.min(defaultTokens, maxTokens ?? defaultTokens);
  const top = body.logprobs ? (body.top_logprobs ?? 0) : undefined;
  const ask: Ask = {
    prompts: [prompt],
    candidates,
    fitted: asked === undefined,
    options: { ...options, maxNewTokens, ...(top && { topLogprobs: top }) },
  };
  const head = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: body.model };
  const names = new TokenNames(call.tokenizer, body.return_tokens_as_token_ids);
  if (body.stream) {
    return sendStream(services, request, reply, pieces(call, body, ask, { ...head, object: CHUNK }, names, top));
  }
  const results = await drained(call.answer(ask));
  const choices = best(results[0]!, n).map((result, index) => ({
    index,
    message: { role: "assistant", content: result.text, refusal: null },
    logprobs:
      top === undefined
        ? null
        : {
            content: result.tokens.map((token, at) =>
              names.chat({ token, logprob: result.logprobs[at]!, top: result.topLogprobs?.[at] ?? [] }, top),
            ),
            refusal: null,
          },
    finish_reason: result.finishReason === "stop" ? "stop" : "length",
  }));
  const usage = usageOf(ask.prompts, results);
  return { ...head, object: "chat.completion", choices, usage, ...call.extras(body, results) };
}

const CHUNK = "chat.completion.chunk";

async function* pieces(
  call: Call,
  body: ChatBody,
  ask: Ask,
  head: object,
  names: TokenNames,
  top: number | undefined,
): AsyncGenerator<object> {
  const begun = new Set<number>();
  const results = yield* mapped(call.answer(ask), ({ value }) => {
    const fresh = !begun.has(value.choice);
    begun.add(value.choice);
    if (value.text === "" && top === undefined && !value.finishReason && !fresh) return undefined;
    const { token, logprob } = value;
    const content: ChatTokenLogprob[] | undefined =
      top === undefined ? undefined : [names.chat({ token, logprob, top: value.top ?? [] }, top)];
    const finish: Finish = value.finishReason ?? null;
    const choice = {
      index: value.choice,
      delta: { ...(fresh && { role: "assistant" }), content: value.text },
      logprobs: content ? { content, refusal: null } : null,
      finish_reason: finish,
    };
    return { ...head, choices: [choice] };
  });
  const extras = call.extras(body, results);
  const usage = body.stream_options?.include_usage ? { usage: usageOf(ask.prompts, results) } : {};
  if (Object.keys(extras).length + Object.keys(usage).length > 0) yield { ...head, choices: [], ...usage, ...extras };
}

/** The messages in the server's chat format. */
function promptOf(body: ChatBody, call: Call, { template, specialTokens }: ChatFormat): number[] {
  const { tokenizer } = call;
  if (!tokenizer) throw new InputError("TOKENIZER_MISSING", "messages", "this model has none; use /v1/completions");
  const messages = body.messages.map(({ role, content, ...more }): ChatMessage => {
    const text = typeof content === "string" ? content : (content ?? []).map((part) => part.text).join("");
    // OpenAI's newer name; templates know the older one.
    return { ...more, role: role === "developer" ? "system" : role, content: text };
  });
  const text = tokenizer.applyChatTemplate(messages, {
    addGenerationPrompt: body.add_generation_prompt,
    template,
    ...(body.chat_template_kwargs && { variables: body.chat_template_kwargs }),
  });
  return call.encode(text, specialTokens);
}
