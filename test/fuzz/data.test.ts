/** @file Damaged data: rows of every form, training configs, metrics of runs, chat templates and what is put into them. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { parquetWriteBuffer } from "hyparquet-writer";
import { expect, test } from "vitest";
import { JinjaTemplate, Tokenizer } from "../../src/models/index.ts";
import { RunLibrary } from "../../src/serving/studio/runs/index.ts";
import { loadRows, readConfigFile, renderPrompt, resolveTrainingConfig, rowsOfText } from "../../src/training/index.ts";
import { byteDamage, damageBytes, damageJson, jsonDamage, scratch, settings, Tally, TIMEOUT } from "./support.ts";

const directory = scratch();
const damages = <T>(one: fc.Arbitrary<T>) => fc.array(one, { minLength: 1, maxLength: 4 });

/** One, and late in the text: most others leave nothing of it. */
const late = fc.array(
  byteDamage.map((damage) => ({ ...damage, at: 1 - damage.at })),
  { minLength: 1, maxLength: 1 },
);
const LONG = "a text that may be damaged and is one all the same, ".repeat(8);

const ROWS = [
  { instruction: "Which?", input: "a, b", output: "a", answer: "a" },
  { prompt: "Say it", completion: "it", extra: { deep: [1, { x: null }] } },
  { messages: [{ role: "user", content: "Hi" }, { role: "assistant", content: LONG }] }, // biome-ignore format: one line
];
const TABLE = { instruction: ["Which, of these?", "Why\n?"], input: ["", 'a "quoted" one'], output: ["a", LONG] };
const csv = (delimiter: string): string =>
  [Object.keys(TABLE), ...TABLE.output.map((_, i) => Object.values(TABLE).map((column) => column[i]!))]
    .map((fields) => fields.map((field) => `"${field.replaceAll('"', '""')}"`).join(delimiter))
    .join("\n");
const parquet = Buffer.from(
  parquetWriteBuffer({
    columnData: [
      ...Object.entries(TABLE).map(([name, data]) => ({ name, data, type: "STRING" as const })),
      { name: "number", data: [1n, 2n ** 60n], type: "INT64" },
    ],
  }),
);
const jsonl = ROWS.map((row) => JSON.stringify(row)).join("\n");

const tokenizer = Tokenizer.load("assets/tiny-llama");

/** Rows that were accepted can be put to a model. */
async function readRows(path: string): Promise<void> {
  for (const row of await loadRows(path)) {
    if (row.form !== "messages") expect(renderPrompt(row, tokenizer, { template: "alpaca" }).length).toBeGreaterThan(0);
  }
}

test.each([
  ["jsonl", Buffer.from(jsonl)],
  ["json", Buffer.from(JSON.stringify(ROWS))],
  ["csv", Buffer.from(csv(","))],
  ["tsv", Buffer.from(csv("\t"))],
  ["parquet", parquet],
  ["jsonl.gz", gzipSync(jsonl)],
])(
  "rows: %s with damaged bytes",
  async (extension, source) => {
    const tally = new Tally();
    const path = join(directory.path, `rows.${extension}`);
    await fc.assert(
      fc.asyncProperty(fc.oneof(late, damages(byteDamage)), async (list) => {
        writeFileSync(path, damageBytes(source, list));
        await tally.check(() => readRows(path));
      }),
      settings(200),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "rows: JSON with damaged values",
  async () => {
    const tally = new Tally();
    const path = join(directory.path, "rows.json");
    await fc.assert(
      fc.asyncProperty(damages(jsonDamage), async (list) => {
        writeFileSync(path, damageJson(JSON.stringify(ROWS), list));
        await tally.check(() => readRows(path));
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "rows of a request's text, in each form, and other files' first bytes",
  async () => {
    const tally = new Tally();
    const source = fc.constantFrom(jsonl, JSON.stringify(ROWS), csv(","), "PAR1\u0015\u0004PAR1", "\u001f\u008b\b");
    await fc.assert(
      fc.asyncProperty(
        source,
        fc.constantFrom("jsonl", "json", "csv"),
        fc.oneof(late, damages(byteDamage)),
        async (text, form, list) => {
          const damaged = damageBytes(Buffer.from(text), list).toString("utf8");
          await tally.check(() => rowsOfText(damaged, `data.${form}`, { limit: 100, promptsOnly: true }));
        },
      ),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

const yaml = readFileSync("configs/demo-subjects-milora.yaml", "utf8");
const ALIASES = `a: &a [x, x, x, x, x, x, x, x]\n${Array.from({ length: 9 }, (_, i) => `${"bcdefghij"[i]}: &${"bcdefghij"[i]} [${`*${"abcdefghi"[i]}, `.repeat(8)}]`).join("\n")}\n`; // biome-ignore format: one line

test(
  "training configs, YAML with damaged bytes, and one that grows without bound",
  async () => {
    const tally = new Tally();
    const path = join(directory.path, "config.yaml");
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(yaml, yaml, yaml, ALIASES), damages(byteDamage), async (text, list) => {
        writeFileSync(path, damageBytes(Buffer.from(text), list));
        await tally.check(() => resolveTrainingConfig(readConfigFile(path), path));
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

const LINES = [
  ...[1, 2, 3].map((step) => ({
    ...{ type: "step", step, epoch: step / 10, loss: 1, lm_loss: 1, auxiliary: { balance: 0.1 }, lr: 1e-4 },
    ...{ grad_norm: 1, tokens: 9, supervised_tokens: 3, seconds: 1, tokens_per_second: 9 },
    expert_shares: [[0.5, 0.5]],
  })),
  { type: "evaluation", step: 3, epoch: 0.3, dev_loss: 1, dev_perplexity: 2.7, best: true, seconds: 1 },
];

test(
  "metrics.jsonl and config.json of a run that the studio shows",
  async () => {
    const tally = new Tally();
    const runs = join(directory.path, "runs");
    const run = join(runs, "one");
    mkdirSync(run, { recursive: true });
    const config = JSON.stringify({ method: "lora", model: "m", adapter: { r: 4 }, epochs: 1 });
    const lines = LINES.map((line) => JSON.stringify(line));
    await fc.assert(
      fc.asyncProperty(
        damages(jsonDamage),
        damages(byteDamage),
        fc.nat(LINES.length - 1),
        fc.boolean(),
        async (json, bytes, which, inConfig) => {
          const damaged = lines.with(which, damageJson(lines[which]!, json).replaceAll("\n", " "));
          const text = inConfig ? lines.join("\n") : damageBytes(Buffer.from(damaged.join("\n")), bytes);
          writeFileSync(join(run, "metrics.jsonl"), text);
          writeFileSync(join(run, "config.json"), inConfig ? damageJson(config, json) : config);
          await tally.check(async () => {
            using library = new RunLibrary([runs]);
            const [summary] = await library.list();
            expect(summary).toBeDefined();
            JSON.stringify(await library.detail("one"));
            const series = await library.series("one", {});
            expect(series.steps).toBeLessThanOrEqual(3);
            await library.experts("one", undefined);
          });
        },
      ),
      settings(200),
    );
    tally.conclude();
  },
  TIMEOUT,
);

const { chat_template: template } = JSON.parse(readFileSync("assets/tiny-llama/tokenizer_config.json", "utf8")) as {
  chat_template?: string;
};
const TEMPLATES = [
  ...(template ? [template] : []),
  "{% for message in messages %}{{ message.role + ': ' + message['content'] | trim }}\n{% endfor %}{{ eos_token }}",
  "{% set ns = namespace(x=0) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ messages | length }}",
  "{% macro m(x) %}{{ x | upper }}{% endmacro %}{% if messages[0].role == 'user' %}{{ m(messages[0].content) }}{% else %}{{ raise_exception('no') }}{% endif %}",
];
const WORDS = ["range(1e12)", "range(99999999)", "x", "messages", "'a' * 1e9", "~", "|", "}}", "{{", "{%", "%}", "|tojson", "[::-1]", ".__proto__", ".constructor", "['constructor']('return 1')()", "'a'.replace('a','b')"]; // biome-ignore format: one line

test(
  "chat templates with damaged text, and words of the language where they do not belong",
  async () => {
    const tally = new Tally();
    const words = fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.constantFrom(...WORDS)), {
      maxLength: 3,
    });
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...TEMPLATES),
        fc.array(byteDamage, { maxLength: 2 }),
        words,
        async (text, list, put) => {
          let source = damageBytes(Buffer.from(text), list).toString("utf8");
          for (const [at, word] of put) {
            const i = Math.floor(at * source.length);
            source = source.slice(0, i) + word + source.slice(i);
          }
          await tally.check(() => {
            const said = tokenizer.applyChatTemplate([{ role: "user", content: "Hi" }], { template: source });
            expect(typeof said).toBe("string");
          });
        },
      ),
      settings(400),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test("a chat template cannot have a list without bound made, nor reach what is not its own", () => {
  const render = (source: string): string => new JinjaTemplate(source).render({ messages: [{ role: "user" }] });
  expect(() => render("{% for i in range(1000000000) %}x{% endfor %}")).toThrow(/more than 100000/);
  expect(() => render("{{ range(0, 9000000000000000, 7) }}")).toThrow(/more than 100000/);
  for (const way of ["messages.constructor", "messages.__proto__", "''.constructor", "range.constructor"]) {
    expect(render(`{{ ${way} is defined }}`)).toBe("false");
  }
});
