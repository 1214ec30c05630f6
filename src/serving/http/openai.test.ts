/** @file OpenAI's API as its own client uses it, against the engine's answers. */
import type OpenAI from "openai";
import { NotFoundError } from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { makeAdapter, post, type Started, scratch, startServer, until } from "./testing.ts";

const { directory, remove } = scratch();
let started: Started;
let client: OpenAI;

beforeAll(async () => {
  const adapters = {
    red: await makeAdapter(directory, "lora", 1),
    blue: await makeAdapter(directory, "lora", 2),
    routed: await makeAdapter(directory, "milora", 3),
  };
  started = await startServer(`${directory}/data`, { adapters, context: 256 });
  client = started.client();
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

const prompt = "The cell membrane is";
const greedy = { prompt, max_tokens: 8, temperature: 0 } as const;

/** What the engine itself says. */
async function engineSays(text: string, maxNewTokens: number) {
  const { engine } = started.server.services;
  const tokens = engine.backbone.tokenizer.encode(text);
  const [result] = await engine.generate([{ prompt: tokens, options: { maxNewTokens } }]);
  return { ...result!, prompt: tokens };
}

describe("completions", () => {
  test("say what the engine says, with usage", async () => {
    const expected = await engineSays(prompt, 8);
    const answer = await client.completions.create({ model: "tiny-llama", ...greedy });
    expect(answer.choices).toHaveLength(1);
    expect(answer.choices[0]).toMatchObject({ index: 0, text: expected.text, finish_reason: "length", logprobs: null });
    const prompted = expected.prompt.length;
    expect(answer.usage).toMatchObject({ prompt_tokens: prompted, completion_tokens: 8, total_tokens: prompted + 8 });
    expect(answer.object).toBe("text_completion");
  });

  test("take token ids, lists of texts and lists of token ids; indices count prompts, then choices", async () => {
    const { tokenizer } = started.server.services.engine.backbone;
    const other = "Once upon a time";
    const text = await client.completions.create({ model: "red", ...greedy, prompt: [prompt, other] });
    const ids = await client.completions.create({
      model: "red",
      ...greedy,
      prompt: [tokenizer.encode(prompt), tokenizer.encode(other)],
    });
    expect(text.choices.map(({ index }) => index)).toEqual([0, 1]);
    expect(ids.choices.map((choice) => choice.text)).toEqual(text.choices.map((choice) => choice.text));
    const one = await client.completions.create({ model: "red", ...greedy, prompt: tokenizer.encode(other) });
    expect(one.choices[0]!.text).toBe(text.choices[1]!.text);
    expect(text.usage!.completion_tokens).toBe(16);
  });

  test("stream the same text, with usage at the end", async () => {
    const whole = await client.completions.create({ model: "blue", ...greedy });
    const stream = await client.completions.create({
      ...{ model: "blue", ...greedy },
      ...{ stream: true, stream_options: { include_usage: true } },
    });
    let text = "";
    const finishes: unknown[] = [];
    let usage: unknown;
    for await (const chunk of stream) {
      for (const choice of chunk.choices) {
        text += choice.text;
        if (choice.finish_reason) finishes.push(choice.finish_reason);
      }
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe(whole.choices[0]!.text);
    expect(finishes).toEqual(["length"]);
    expect(usage).toEqual(whole.usage);
  });

  test("n choices of a seed are drawn again the same, and differ among each other", async () => {
    const ask = { model: "tiny-llama", prompt, max_tokens: 12, temperature: 1.5, seed: 7, n: 3 } as const;
    const first = await client.completions.create(ask);
    const second = await client.completions.create(ask);
    const texts = first.choices.map((choice) => choice.text);
    expect(second.choices.map((choice) => choice.text)).toEqual(texts);
    expect(new Set(texts).size).toBe(3);
    const stream = await client.completions.create({ ...ask, stream: true });
    const streamed = ["", "", ""];
    for await (const chunk of stream) for (const choice of chunk.choices) streamed[choice.index] += choice.text;
    expect(streamed).toEqual(texts);
    expect(first.usage!.prompt_tokens).toBe((await engineSays(prompt, 1)).prompt.length);
  });

  test("best_of gives the likeliest per token of what it draws", async () => {
    const ask = { model: "tiny-llama", prompt, max_tokens: 6, temperature: 1.5, seed: 11, logprobs: 0 } as const;
    const all = await client.completions.create({ ...ask, n: 5 });
    const mean = ({ logprobs }: (typeof all.choices)[number]) => {
      const list = logprobs!.token_logprobs!;
      return list.reduce((sum, logprob) => sum + logprob, 0) / list.length;
    };
    const likeliest = all.choices.toSorted((a, b) => mean(b) - mean(a))[0]!;
    const best = await client.completions.create({ ...ask, n: 1, best_of: 5 });
    expect(best.choices[0]!.text).toBe(likeliest.text);
    expect(best.usage!.completion_tokens).toBe(all.usage!.completion_tokens);
  });

  test("stop ends before the text, also in a stream", async () => {
    const whole = await client.completions.create({ model: "tiny-llama", ...greedy, max_tokens: 16 });
    const { text } = whole.choices[0]!;
    const stop = text.slice(5, 8);
    const ask = { model: "tiny-llama", ...greedy, max_tokens: 16, stop: [stop] };
    const stopped = await client.completions.create(ask);
    expect(stopped.choices[0]).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finish_reason: "stop" });
    let streamed = "";
    for await (const chunk of await client.completions.create({ ...ask, stream: true })) {
      streamed += chunk.choices[0]?.text ?? "";
    }
    expect(streamed).toBe(stopped.choices[0]!.text);
  });

  test("beam search as an extension: the n best of its width", async () => {
    const body = { model: "tiny-llama", prompt, max_tokens: 8, beam_width: 3, n: 2 };
    const answer = await client.completions.create(body);
    const { engine } = started.server.services;
    const prompted = engine.backbone.tokenizer.encode(prompt);
    const [best] = await engine.generate([{ prompt: prompted, options: { maxNewTokens: 8, beams: 3 } }]);
    expect(answer.choices[0]!.text).toBe(best!.text);
    expect(answer.choices[1]!.text).not.toBe(best!.text);
    const older = await client.completions.create({
      ...{ model: "tiny-llama", ...greedy, best_of: 3, n: 1 },
      ...({ use_beam_search: true } as object),
    });
    expect(older.choices[0]!.text).toBe(best!.text);
  });

  test("penalties, biases and ignore_eos reach the sampler", async () => {
    const plain = await client.completions.create({ model: "tiny-llama", ...greedy, logprobs: 0 });
    const first = started.server.services.engine.backbone.tokenizer.encode(plain.choices[0]!.logprobs!.tokens![0]!)[0]!;
    const ask = { model: "tiny-llama", ...greedy, logit_bias: { [first]: -100 } };
    const other = await client.completions.create(ask);
    expect(other.choices[0]!.text).not.toBe(plain.choices[0]!.text);
  });
});

describe("logprobs", () => {
  test("of a completion: the likeliest and the chosen, offsets into the text", async () => {
    const answer = await client.completions.create({ model: "tiny-llama", ...greedy, logprobs: 3 });
    const { text, logprobs } = answer.choices[0]!;
    const { tokens, token_logprobs, top_logprobs, text_offset } = logprobs!;
    expect(tokens!.join("")).toBe(text);
    expect((await engineSays(prompt, 8)).logprobs).toEqual(token_logprobs);
    tokens!.forEach((token, i) => {
      expect(Object.keys(top_logprobs![i]!)).toHaveLength(3);
      expect(Math.max(...Object.values(top_logprobs![i]!))).toBe(top_logprobs![i]![token]);
      expect(text.startsWith(token, text_offset![i])).toBe(true);
    });
  });

  test.each([0, 1])("as lm-evaluation-harness reads them: echo, logprobs 1, max_tokens %i", async (max_tokens) => {
    const { engine } = started.server.services;
    const [context, continuation] = [" The cell membrane", " is thin"].map((text) =>
      engine.backbone.tokenizer.encode(text),
    );
    const tokens = [...context!, ...continuation!];
    const [expected] = await engine.score([{ prompt: context!, continuation: continuation! }]);
    const body = { model: "tiny-llama", prompt: [tokens, tokens], temperature: 0, logprobs: 1, seed: 1234, echo: true };
    const answer = await client.completions.create({ ...body, max_tokens });
    expect(answer.choices).toHaveLength(2);
    for (const { logprobs, text } of answer.choices) {
      const { token_logprobs, top_logprobs, tokens: names } = logprobs!;
      expect(names).toHaveLength(tokens.length + max_tokens);
      expect(token_logprobs).toHaveLength(tokens.length + max_tokens);
      expect(token_logprobs![0]).toBeNull();
      expect(top_logprobs![0]).toBeNull();
      expect(text.startsWith(engine.backbone.tokenizer.decode(tokens))).toBe(true);
      // The harness: sum(token_logprobs[ctxlen:-1]) and whether each is the largest of top_logprobs.
      const end = token_logprobs!.length - max_tokens;
      const scores = token_logprobs!.slice(context!.length, end);
      for (const [i, score] of scores.entries()) expect(score).toBeCloseTo(expected!.logprobs[i]!, 4);
      const isGreedy = scores.every((score, i) => {
        return score === Math.max(...Object.values(top_logprobs![context!.length + i]!));
      });
      expect(isGreedy).toBe(expected!.greedy);
    }
  });

  test("of a stream are those of the whole, the prompt's in front where it is echoed", async () => {
    const ask = { model: "red", ...greedy, logprobs: 2, echo: true } as const;
    const whole = (await client.completions.create(ask)).choices[0]!;
    const list = { tokens: [] as string[], token_logprobs: [] as number[], text_offset: [] as number[] };
    let text = "";
    for await (const chunk of await client.completions.create({ ...ask, stream: true })) {
      const choice = chunk.choices[0]!;
      text += choice.text;
      list.tokens.push(...choice.logprobs!.tokens!);
      list.token_logprobs.push(...choice.logprobs!.token_logprobs!);
      list.text_offset.push(...choice.logprobs!.text_offset!);
    }
    expect(text).toBe(whole.text);
    expect(text.startsWith(prompt)).toBe(true);
    expect(list.tokens).toEqual(whole.logprobs!.tokens);
    expect(list.token_logprobs).toEqual(whole.logprobs!.token_logprobs);
    expect(list.text_offset).toEqual(whole.logprobs!.text_offset);
  });

  test("of a chat answer: bytes, and as many alternatives as asked for", async () => {
    const answer = await client.chat.completions.create({
      ...{ model: "tiny-llama", messages: [{ role: "user", content: "Hello" }] },
      ...{ max_tokens: 6, temperature: 0, logprobs: true, top_logprobs: 2 },
    });
    const { logprobs, message } = answer.choices[0]!;
    const bytes = logprobs!.content!.flatMap((token) => token.bytes!);
    expect(new TextDecoder().decode(Uint8Array.from(bytes))).toBe(message.content);
    for (const { token, top_logprobs } of logprobs!.content!) {
      expect(top_logprobs).toHaveLength(2);
      expect(top_logprobs[0]!.token).toBe(token);
    }
  });
});

describe("chat", () => {
  test("renders the model's template and streams the same answer", async () => {
    const messages = [
      { role: "system" as const, content: "Be brief." },
      {
        role: "user" as const,
        content: [
          { type: "text" as const, text: "What is a " },
          { type: "text" as const, text: "cell?" },
        ],
      },
    ];
    const ask = { model: "tiny-llama:red", messages, max_completion_tokens: 8, temperature: 0 };
    const answer = await client.chat.completions.create(ask);
    const rendered =
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is a cell?<|im_end|>\n<|im_start|>assistant\n";
    const same = await client.completions.create({
      ...{ model: "red", prompt: rendered, max_tokens: 8, temperature: 0 },
      ...({ add_special_tokens: false } as object),
    });
    expect(answer.choices[0]!.message).toMatchObject({ role: "assistant", content: same.choices[0]!.text });
    let text = "";
    const roles: unknown[] = [];
    let last: unknown;
    for await (const { choices } of await client.chat.completions.create({ ...ask, stream: true })) {
      text += choices[0]!.delta.content ?? "";
      if (choices[0]!.delta.role) roles.push(choices[0]!.delta.role);
      last = choices[0]!.finish_reason;
    }
    expect({ text, roles, last }).toEqual({ text: same.choices[0]!.text, roles: ["assistant"], last: "length" });
  });

  test("goes on to the end of the context where the request names no length", async () => {
    const answer = await client.chat.completions.create({
      ...{ model: "tiny-llama", messages: [{ role: "user", content: "x" }], temperature: 0 },
      ...({ ignore_eos: true } as object),
    });
    expect(answer.usage!.total_tokens).toBe(256);
  });
});

describe("models", () => {
  test("list the backbone and the adapters with their parent", async () => {
    const { data } = await client.models.list();
    expect(data.map(({ id }) => id)).toEqual(["tiny-llama", "blue", "red", "routed"]);
    expect(data.map((model) => (model as { parent?: unknown }).parent)).toEqual([
      null,
      "tiny-llama",
      "tiny-llama",
      "tiny-llama",
    ]);
    expect(await client.models.retrieve("tiny-llama:red")).toMatchObject({ id: "red", parent: "tiny-llama" });
  });

  test("a name and base:name are the same adapter, which is not the backbone", async () => {
    const ask = (model: string) => client.completions.create({ model, ...greedy });
    const [base, red, full] = await Promise.all(["tiny-llama", "red", "tiny-llama:red"].map(ask));
    expect(full!.choices[0]!.text).toBe(red!.choices[0]!.text);
    expect(red!.choices[0]!.text).not.toBe(base!.choices[0]!.text);
  });

  test.each(["nope", "tiny-llama:nope", "other:red", "../red", "red ", "RED"])(
    "%j is 404, never the backbone",
    async (model) => {
      const error = await client.completions.create({ model, ...greedy }).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(NotFoundError);
      expect(error).toMatchObject({ status: 404, code: "MODEL_NOT_FOUND", type: "not_found_error" });
    },
  );
});

describe("many streams under different adapters", () => {
  test("give the tokens that each gives alone", async () => {
    const models = ["tiny-llama", "red", "blue", "routed"];
    const asks = Array.from({ length: 16 }, (_, i) => ({
      ...{ model: models[i % 4]!, prompt: `${"word ".repeat(i % 5)}The cell`, temperature: 0 },
      ...{ max_tokens: 6 + i, logprobs: 0, return_tokens_as_token_ids: true },
    }));
    const alone: string[][] = [];
    for (const ask of asks) alone.push((await client.completions.create(ask)).choices[0]!.logprobs!.tokens!);
    const together = await Promise.all(
      asks.map(async (ask) => {
        const tokens: string[] = [];
        for await (const chunk of await client.completions.create({ ...ask, stream: true })) {
          tokens.push(...(chunk.choices[0]?.logprobs?.tokens ?? []));
        }
        return tokens;
      }),
    );
    expect(together).toEqual(alone);
  });
});

describe("routes", () => {
  test("are told on request, by the body or a header, as the engine reports them", async () => {
    const { engine, registry } = started.server.services;
    const record = await registry.resolve({ tenant: "default" }, "routed");
    using lease = await registry.lease(record!);
    const inspected = await engine.inspectTokens(engine.backbone.tokenizer.encode(prompt), lease.adapter);
    const body = { model: "routed", ...greedy, x_milora: { routes: true } };
    const told = (await (await post(`${started.url}/v1/completions`, body)).json()) as {
      x_milora: {
        adapter: object;
        routes: { experts: string[]; layers: { chosen: string[]; probabilities: number[] }[] }[];
      };
    };
    expect(told.x_milora.adapter).toEqual({ name: "routed", digest: record!.digest });
    const [route] = told.x_milora.routes;
    expect(route!.layers.map(({ chosen }) => chosen)).toEqual(inspected.route!.experts);
    expect(route!.layers[0]!.probabilities).toHaveLength(route!.experts.length);
    const response = await post(
      `${started.url}/v1/completions`,
      { model: "routed", ...greedy, stream: true },
      { "x-milora-routes": "true" },
    );
    const events = (await response.text()).split("\n\n").filter((event) => event.includes("x_milora"));
    expect(JSON.parse(events[0]!.slice("data: ".length))).toMatchObject({ choices: [], x_milora: told.x_milora });
    const silent = (await (
      await post(`${started.url}/v1/completions`, { model: "routed", ...greedy })
    ).json()) as object;
    expect(silent).not.toHaveProperty("x_milora");
  });
});

describe("leaving early", () => {
  test("abort ends the work and frees the adapter", async () => {
    const { scheduler, registry, store } = started.server.services;
    const stream = await client.completions.create({
      ...{ model: "red", prompt, max_tokens: 240, temperature: 0, stream: true as const },
      ...({ ignore_eos: true } as object),
    });
    for await (const _ of stream) break; // the client aborts the request
    await until(() => scheduler.stats().running === 0 && started.server.services.state.inFlight === 0);
    const record = (await registry.all()).find(({ name }) => name === "red");
    expect(record).toMatchObject({ inFlight: 0 });
    expect(store.quotas.state("default").running).toBe(0);
    await until(() => started.lines.some(({ status, adapter }) => status === 499 && adapter === "red"));
    const line = started.lines.find(({ status, adapter }) => status === 499 && adapter === "red")!;
    expect(line.completionTokens).toBeLessThan(240);
  });

  test("neither prompts nor answers are in the log", () => {
    expect(started.lines.length).toBeGreaterThan(10);
    expect(JSON.stringify(started.lines)).not.toContain("cell membrane");
  });
});
