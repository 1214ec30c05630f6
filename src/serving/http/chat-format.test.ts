/** @file How chats are put to the model: Alpaca's prompt, a file's template, and what is cached of a prompt that comes again. */
import { writeFileSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import { chatFormatOf } from "./openai/chat-format.ts";
import { scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
afterAll(remove);

const ALPACA =
  "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n" +
  "### Instruction:\nWhat is a cell?\n\n### Response:\n";

async function texts(chatTemplate: string, messages: readonly { role: string; content: string }[], prompt: string) {
  await using started = await startServer(`${directory}/${Math.random()}`, { chatTemplate, context: 256 });
  const client = started.client();
  const shared = { model: "tiny-llama", temperature: 0 };
  const chat = await client.chat.completions.create({
    ...{ ...shared, messages: messages as never, max_completion_tokens: 8 },
  });
  const plain = await client.completions.create({
    ...{ ...shared, prompt, max_tokens: 8 },
    ...({ add_special_tokens: chatTemplate === "alpaca" } as object),
  });
  return { chat: chat.choices[0]!.message.content, plain: plain.choices[0]!.text, usage: [chat.usage, plain.usage] };
}

test("alpaca is the prompt that adapters are trained with", async () => {
  const { chat, plain, usage } = await texts("alpaca", [{ role: "user", content: "What is a cell?" }], ALPACA);
  expect(chat).toBe(plain);
  expect(usage[0]!.prompt_tokens).toBe(usage[1]!.prompt_tokens);
  expect(usage[0]!.prompt_tokens_details!.cached_tokens).toBe(0);
  // The same prompt again: whole blocks of it are not read a second time.
  expect(usage[1]!.prompt_tokens_details!.cached_tokens).toBeGreaterThanOrEqual(32);
});

test("alpaca puts a system message in place of its own and goes on with later turns", async () => {
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "What is a cell?" },
    { role: "assistant", content: "The unit of life." },
    { role: "user", content: "Of what size?" },
  ];
  const prompt =
    "Be brief.\n\n### Instruction:\nWhat is a cell?\n\n### Response:\nThe unit of life.\n\n" +
    "### Instruction:\nOf what size?\n\n### Response:\n";
  const { chat, plain, usage } = await texts("alpaca", messages, prompt);
  expect(chat).toBe(plain);
  expect(usage[0]!.prompt_tokens).toBe(usage[1]!.prompt_tokens);
});

test("a Jinja file wins over the model's template", async () => {
  const file = `${directory}/chat.jinja`;
  writeFileSync(file, "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}");
  const { chat, plain } = await texts(file, [{ role: "user", content: "What is a cell?" }], "[user] What is a cell?\n");
  expect(chat).toBe(plain);
});

test("what is no file or no Jinja is refused at the start", () => {
  const broken = `${directory}/broken.jinja`;
  writeFileSync(broken, "{% for x in %}");
  expect(() => chatFormatOf(`${directory}/none.jinja`)).toThrow(/give a Jinja file, or alpaca/);
  expect(() => chatFormatOf(broken)).toThrow(expect.objectContaining({ code: "CHAT_TEMPLATE_INVALID" }));
});
