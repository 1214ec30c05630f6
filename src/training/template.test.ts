/** @file Prompt templates of the user's own: what they need of a row, what they may not show, and the same prompt everywhere. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../models/index.ts";
import { resolveTrainingConfig } from "./config.ts";
import { loadData } from "./data.ts";
import { renderPrompt, renderRow } from "./render.ts";
import { loadRows, parseRow, type Row } from "./rows.ts";
import { PromptTemplate, templateOf } from "./template.ts";

const tokenizer = Tokenizer.load(join(import.meta.dirname, "../../assets/tiny-llama"));
const directory = mkdtempSync(join(tmpdir(), "milora-template-"));
afterAll(() => rmSync(directory, { recursive: true }));

function row(value: unknown): Row {
  const { row: parsed, problems } = parseRow(value, 3, true);
  if (!parsed) throw new Error(problems.join());
  return parsed;
}

function file(name: string, content: string): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

describe("PromptTemplate", () => {
  it("shows the fields of a row, whatever they are", () => {
    const template = new PromptTemplate(
      "{{ context }}\nQ: {{ question.text | trim }}\n{% for c in choices %}({{ loop.index }}) {{ c }}\n{% endfor %}A: ",
    );
    expect(template.required.toSorted()).toEqual(["choices", "context", "question"]);
    const one = row({ context: "Sky.", question: { text: " Colour? " }, choices: ["red", "blue"], output: "blue" });
    expect(template.render(one)).toBe("Sky.\nQ: Colour?\n(1) red\n(2) blue\nA: ");
  });

  it.each([
    ["{{ a }}{{ b.c }}{{ d[e] }}{{ f | upper }}{{ g ~ h }}", ["a", "b", "d", "e", "f", "g", "h"]],
    ["{% if a %}{{ a }}{{ b }}{% elif c == d %}{% else %}{{ e }}{% endif %}", ["b", "e"]],
    ['{{ a | default("x") }}{{ b if c else d }}{% if e is defined %}{% endif %}', ["b", "d"]],
    ["{% set a = b %}{{ a }}{% for x, y in c %}{{ x }}{{ loop.index }}{% endfor %}", ["b", "c"]],
    ["{% macro m(p, q=r) %}{{ p }}{{ q }}{% endmacro %}{{ m(s, q=t) }}", ["s", "t"]],
    ['{{ "x" }}{{ range(3) }}{{ [a, {"k": b}] }}{# c #}', ["a", "b"]],
  ])("needs what %s prints, and not what it only asks for or sets", (source, required) => {
    expect(new PromptTemplate(source).required.toSorted()).toEqual(required);
  });

  it("names the row and the variable that is missing, also where it is null", () => {
    const template = new PromptTemplate("{{ context }} {{ question }}", "mine.jinja");
    expect(() => template.render(row({ question: null, output: "x" }))).toThrow(
      'mine.jinja: row 3: missing "context", "question"',
    );
    const loud = new PromptTemplate("{{ n.upper() }}", "mine.jinja");
    expect(() => loud.render(row({ n: 7, output: "x" }))).toThrow(/mine\.jinja: cannot show row 3 \(/);
  });

  it("does not show the answer", () => {
    for (const name of ["output", "completion", "response", "answer"]) {
      expect(() => new PromptTemplate(`{{ question }} {{ ${name} }}`)).toThrow(
        `uses "${name}", which is what the model`,
      );
    }
    const turns = [
      { role: "user", content: "hi" },
      { role: "assistant", content: "secret" },
    ];
    const chat = new PromptTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    expect(chat.render(row({ messages: turns }))).toBe("user: hi\n");
  });

  it("compares and strips as Python does", () => {
    const template = new PromptTemplate(
      '{% if n == "1" %}text{% elif n == 1 %}number{% endif %} {{ question.strip("?") }}',
    );
    expect(template.required).toEqual(["question"]);
    expect(template.render(row({ n: 1, question: "??why?", output: "x" }))).toBe("number why");
    expect(template.render(row({ n: "1", question: "why", output: "x" }))).toBe("text why");
    const today = new PromptTemplate("{{ strftime_now('%Y') }}{{ question }}");
    expect(today.render(row({ question: "", output: "x" }))).toMatch(/^\d{4}$/);
  });

  it("refuses what is no Jinja", () => {
    expect(() => new PromptTemplate("{% if x %}", "mine.jinja")).toThrow(/mine\.jinja: is no Jinja template \(/);
  });
});

describe("templateOf", () => {
  it("takes a name, a file, or Jinja itself", () => {
    expect(templateOf("chat")).toBe("chat");
    expect((templateOf("Q: {{ q }}") as PromptTemplate).required).toEqual(["q"]);
    const path = file("a.jinja", "Q: {{ q }}\nA:\n");
    const template = templateOf(path) as PromptTemplate;
    expect(template.name).toBe(path);
    expect(template.render(row({ q: "?", output: "x" }))).toBe("Q: ?\nA:");
    expect(() => templateOf("alpca")).toThrow(/is not one of alpaca, chat, none, no file.*did you mean "alpaca"\?/);
    expect(() => templateOf(directory)).toThrow(/EISDIR/);
  });

  it("is looked at when the config is read", () => {
    const resolve = (template: string) =>
      resolveTrainingConfig({ model: "m", method: "lora", output_dir: "o", data: { train: "t", template } });
    for (const good of ["none", "prompts/mine.jinja", "{{ q }}"]) expect(resolve(good).data.template).toBe(good);
    expect(() => resolve("alpca")).toThrow(/data\.template: not one of alpaca, chat, none, the path of a Jinja file/);
  });
});

describe("training and evaluation with a template", () => {
  const source = "{{ context }}\nQ: {{ question }}\nA: ";
  const records = [
    { context: "One.", question: "Which?", output: "this" },
    { context: "Two.", question: "Which?", output: "this" },
    { context: "Two.", question: "Which?", output: "this", other: 1 },
  ];
  const path = file("free.jsonl", records.map((record) => JSON.stringify(record)).join("\n"));
  const base = { dev: 0, maxLength: 60, seed: 0 } as const;

  it("feeds both the same prompt, and tells rows apart by all their fields", async () => {
    const template = new PromptTemplate(source);
    const rows = await loadRows(path, { free: true });
    const { train } = await loadData(tokenizer, { ...base, train: path, template: source });
    expect(train).toHaveLength(3);
    for (const [i, { tokens, promptLength }] of train.entries()) {
      const { prompt, response } = renderRow(rows[i]!, tokenizer, { template });
      expect([...tokens]).toEqual([...prompt, ...response]);
      expect(renderPrompt(rows[i]!, tokenizer, { template })).toEqual([...tokens.slice(0, promptLength)]);
      expect(tokenizer.decode(prompt)).toBe(`${records[i]!.context}\nQ: Which?\nA: `);
    }
  });

  it("names all rows that lack a field", async () => {
    const lacking = file(
      "lacking.jsonl",
      '{"question":"a","output":"b"}\n{"context":"c","question":"a","output":"b"}\n{"output":"b"}',
    );
    await expect(loadData(tokenizer, { ...base, train: lacking, template: source })).rejects.toThrow(
      /2 of 3 rows do not fit the template template\): 2 problems: row 1: missing "context"; row 3: missing "context", "question"/,
    );
    const answerless = file("answerless.jsonl", '{"context":"c","question":"a"}');
    await expect(loadData(tokenizer, { ...base, train: answerless, template: source })).rejects.toThrow(
      /row 1: missing "output"/,
    );
  });

  it("leaves rows without a form to such templates", async () => {
    await expect(loadData(tokenizer, { ...base, train: path, template: "alpaca" })).rejects.toThrow(
      /row 1: needs "instruction", "prompt" or "messages", has "context", "question", "output"/,
    );
    expect(() => renderPrompt(row(records[0]), tokenizer, { template: "chat" })).toThrow(
      /row 3: has no "instruction", "prompt" or "messages" for the template "chat"/,
    );
  });
});
