/** @file Chat templates of the model families, and Jinja one feature at a time, against transformers. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { ChatTemplate } from "./chat-template.ts";

interface Case {
  template: string;
  conversation: string;
  messages?: { role: string; content: string }[];
  options: { add_generation_prompt?: boolean; tools?: unknown[]; enable_thinking?: boolean };
  text?: string;
  error?: string;
}

/** Made by test/reference/chat_templates.py. */
const fixture = JSON.parse(readFileSync("test/fixtures/tokenizers/chat.json", "utf8")) as {
  now: string;
  special: Record<string, string>;
  variables: Record<string, unknown>;
  templates: Record<string, string>;
  conversations: Record<string, { role: string; content: string }[]>;
  cases: Case[];
  probes: Record<string, { template: string; text: string }>;
};
const now = new Date(fixture.now);

const render = (template: string, messages: Case["messages"], options: Case["options"], variables = {}): string => {
  const { add_generation_prompt: addGenerationPrompt, tools, ...rest } = options;
  return new ChatTemplate(new Map([["default", template]]), fixture.special, "x").render(messages ?? [], {
    ...(addGenerationPrompt === undefined ? {} : { addGenerationPrompt }),
    ...(tools ? { tools } : {}),
    variables: { ...rest, ...variables },
    now,
  });
};

describe.each(Object.keys(fixture.templates))("%s", (name) => {
  test.each(fixture.cases.filter(({ template }) => template === name))("$conversation, $options", (given) => {
    const messages = given.messages ?? fixture.conversations[given.conversation]!;
    const rendered = () => render(fixture.templates[name]!, messages, given.options);
    if (given.error === undefined) expect(rendered()).toBe(given.text);
    else expect(rendered).toThrow(given.error);
  });
});

test.each(Object.entries(fixture.probes))("Jinja: %s", (_, { template, text }) => {
  expect(render(template, [], {}, fixture.variables)).toBe(text);
});

test("several templates: with tools the one for them, else the default, else the first", () => {
  const options = { tools: [{ type: "function" }] };
  const of = (...names: string[]) => new ChatTemplate(new Map(names.map((name) => [name, name])), {}, "x");
  expect(of("rag", "tool_use", "default").render([], {})).toBe("default");
  expect(of("rag", "tool_use", "default").render([], options)).toBe("tool_use");
  expect(of("rag", "default").render([], options)).toBe("default");
  expect(of("rag").render([], {})).toBe("rag");
});

test("the date is today's, in English", () => {
  const day = new ChatTemplate(new Map([["default", "{{ strftime_now('%Y-%m-%d') }}"]]), {}, "x").render([], {});
  expect(Math.abs(Date.now() - Date.parse(day))).toBeLessThan(2 * 86_400_000);
});

test("documents and other variables reach the template; what it refuses is told", () => {
  const template = new ChatTemplate(new Map([["default", "{{ documents[0].title }}{{ thinking }}{{ raise_exception(thinking) if thinking == 'no' }}"]]), {}, "x"); // biome-ignore format: one line
  expect(template.render([], { documents: [{ title: "T" }], variables: { thinking: 2 } })).toBe("T2");
  expect(() => template.render([], { documents: [{}], variables: { thinking: "no" } })).toThrow(
    /does not take these messages: no/,
  );
});
