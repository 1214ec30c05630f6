/** @file Training rows of tasks and corpora, in the form that training reads, and the rows that tables count. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { InputError, writeFileAtomic } from "../../base/index.ts";
import { filesOf, loadRows, outputOf, type Row } from "../../training/index.ts";
import { loadSplit } from "../load.ts";
import { asTraining, findOverlap, textOfDocument, textOfRow } from "../overlap.ts";
import { conversationOf, loadTasks } from "../registry.ts";
import type { Document, GenerateForm, Protocol, Split, Task } from "../task.ts";
import type { Values } from "./study.ts";

/** Rows in the form of LLM-Adapters, known by what they hold. */
export interface Source {
  readonly name: string;
  readonly rows: number;
  /** sha256 of the rows. */
  readonly digest: string;
  /** For estimates: a few of them. */
  readonly sample: readonly Row[];
  readonly texts: readonly string[];
  /** Where training finds them, once they are written. */
  readonly path: string;
  write(): void;
}

/** What training takes of a name: rows, and dev rows where the data set has any that are not measured on. */
export interface Sources {
  readonly train: Source;
  readonly dev: Source | undefined;
}

/** Corpora that are no tasks, by name. */
const CORPORA: Readonly<Record<string, { readonly hub: string; readonly files: readonly string[] }>> = {
  alpaca: { hub: "hf:tatsu-lab/alpaca", files: ["alpaca/train.jsonl", "alpaca/alpaca_data.json", "alpaca/*.json"] },
};

/** Rows that are looked at to tell how long rows are. */
const SAMPLE = 200;

/** The protocol that a task of the paper is measured under. */
export function protocolOf(task: Task): Protocol {
  if (conversationOf(task)) return "fastchat";
  return task.protocols.hu2023 ? "hu2023" : "lm-eval";
}

/** A training row of a task: its prompt under the protocol, and what the model is to write. */
function rowOf(form: GenerateForm, document: Document): object {
  const { instruction, output, rationale } = document.fields;
  if (typeof instruction === "string" && typeof output === "string") {
    return { instruction, input: "", output, answer: document.fields.answer };
  }
  const answer = form.answer!(document);
  const said = `the correct answer is ${answer}`;
  const reasoned = typeof rationale === "string" ? `${rationale}\n${said}` : said;
  const free = document.choices.length === 0; // its target has the reasoning
  return { instruction: form.prompt(document), input: "", output: free ? document.target : reasoned, answer };
}

const passageOf = (instruction: string): string => instruction.split("\n\n").slice(1, -1).join("\n\n");

export class Data {
  readonly #directory: string | undefined;
  readonly #folder: string;
  readonly #known = new Map<string, Promise<unknown>>();

  /**
   * @param directory rows of tasks; without it what is bundled, else the hub
   * @param folder where rows for training are written
   */
  constructor(directory: string | undefined, folder: string) {
    this.#directory = directory;
    this.#folder = folder;
  }

  get directory(): string | undefined {
    return this.#directory;
  }

  /** Everything is read once. */
  #once<T>(key: string, make: () => Promise<T>): Promise<T> {
    const found = (this.#known.get(key) ?? make()) as Promise<T>;
    this.#known.set(key, found);
    found.catch(() => {}); // whoever asked sees it
    return found;
  }

  async #task(name: string): Promise<Task | undefined> {
    return (await loadTasks()).get(name);
  }

  /** Rows to be measured. */
  test(task: Task) {
    const form = task.protocols[protocolOf(task)]!;
    return this.#once(`test ${task.name}`, () => loadSplit(task, form.split, { directory: this.#directory }));
  }

  /** Throws `InputError` where rows are missing. */
  training(name: string): Promise<Sources> {
    return this.#once(`train ${name}`, async () => {
      const task = await this.#task(name);
      if (!task) return { train: await this.#corpus(name), dev: undefined };
      const form = task.protocols.hu2023;
      if (form?.kind !== "generate" || !form.answer) {
        throw new InputError("TASK_UNSUPPORTED", name, "has no prompts that an adapter can be trained on");
      }
      const dev = this.#devSplit(task, form.split);
      const train = await this.#source(name, "train", task, form);
      return { train, dev: dev === undefined ? undefined : await this.#sourceIfThere(name, dev, task, form) };
    });
  }

  /** A split of the task for choosing checkpoints; never the one that is measured. */
  #devSplit({ data, name }: Task, measured: Split): Split | undefined {
    if (data.bundled !== undefined) return "dev";
    const here = (split: Split) =>
      data.files?.[split] !== undefined ||
      (this.#directory !== undefined && existsSync(join(this.#directory, name, `${split}.jsonl`)));
    return ["dev", "validation"].find((split) => split !== measured && here(split));
  }

  /** Undefined where the directory has none; instead of dev rows a share of the training rows does then. */
  async #sourceIfThere(name: string, split: Split, task: Task, form: GenerateForm): Promise<Source | undefined> {
    try {
      return await this.#source(name, split, task, form);
    } catch (error) {
      if (error instanceof InputError && error.code === "FILE_UNREADABLE") return undefined;
      throw error;
    }
  }

  async #source(name: string, split: Split, task: Task, form: GenerateForm): Promise<Source> {
    const chosen = split === "validation" && task.data.bundled !== undefined ? "dev" : split;
    const { documents } = await loadSplit(task, chosen, { directory: this.#directory }, false);
    return this.#sourceOf(
      name,
      chosen,
      documents.map((document) => rowOf(form, document)),
    );
  }

  async #corpus(name: string): Promise<Source> {
    const corpus = CORPORA[name];
    if (!corpus) throw new InputError("TASK_UNKNOWN", name, "is neither a task nor a corpus");
    const path = await this.#corpusPath(name);
    const rows = (await loadRows(path)).filter((row) => outputOf(row).trim() !== "");
    return this.#sourceOf(
      name,
      "train",
      rows.map(({ fields }) => fields!),
    );
  }

  async #corpusPath(name: string): Promise<string> {
    const { hub, files } = CORPORA[name]!;
    const directory = this.#directory;
    if (directory === undefined) return hub;
    for (const file of files) {
      const path = join(directory, file);
      const found = file.includes("*") ? await filesOf(path).catch(() => []) : existsSync(path) ? [path] : [];
      if (found.length) return path;
    }
    throw new InputError(
      "FILE_UNREADABLE",
      directory,
      `has no rows of ${name}; looked for ${files.join(", ")}. The data set: ${hub}`,
    );
  }

  #sourceOf(name: string, split: string, rows: readonly object[]): Source {
    const lines = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    const digest = createHash("sha256").update(lines).digest("hex");
    const path = join(this.#folder, `${name}-${split}-${digest.slice(0, 12)}.jsonl`);
    const asRows = rows.map((fields, i): Row => {
      const { instruction, input, output } = fields as Record<"instruction" | "input" | "output", string>;
      return { form: "instruction", number: i + 1, instruction, input: input ?? "", output };
    });
    const step = Math.max(1, Math.floor(asRows.length / SAMPLE));
    return {
      name,
      rows: rows.length,
      digest,
      sample: asRows.filter((_, i) => i % step === 0).slice(0, SAMPLE),
      texts: asRows.map(textOfRow),
      path,
      write: () => {
        if (!existsSync(path)) writeFileAtomic(path, lines);
      },
    };
  }

  /** Training and dev rows of a task, as far as they are here. */
  available(task: Task): Promise<Partial<Sources>> {
    return this.#once(`available ${task.name}`, async () => {
      const form = task.protocols.hu2023;
      if (form?.kind !== "generate") return {};
      const split = this.#devSplit(task, form.split);
      const read = (part: Split | undefined) =>
        part === undefined ? undefined : this.#sourceIfThere(task.name, part, task, form);
      const [train, dev] = [await read("train"), await read(split)];
      return { ...(train && { train }), dev };
    });
  }

  /** Rows of the tasks of a name, or of a corpus. What is not there counts as null. */
  async count(name: string, tasks: readonly string[]): Promise<Values["rows"]> {
    const found = (await Promise.all(tasks.map((task) => this.#task(task)))).filter((task) => task !== undefined);
    if (found.length === 0) {
      const { train } = await this.training(name);
      return { train: train.rows, dev: null, test: null, overlap: null };
    }
    let test = 0;
    for (const task of found) test += (await this.test(task)).documents.length;
    if (found.length > 1) return { train: null, dev: null, test, overlap: null };
    const [task] = found as [Task];
    const { train, dev } = await this.available(task);
    if (!train) return { train: null, dev: dev?.rows ?? null, test, overlap: null };
    const { documents } = await this.test(task);
    // Of the bundled tasks the passage is in the instruction, between frames that all rows have.
    const texts = documents.map((document) =>
      task.data.bundled === undefined ? textOfDocument(document) : passageOf(String(document.fields.instruction)),
    );
    const overlap = findOverlap(texts, asTraining([name], train.texts)).rows.length;
    return { train: train.rows, dev: dev?.rows ?? null, test, overlap };
  }
}
