/** @file What a task is: where its rows come from, what they ask, and how each protocol makes prompts and marks answers. */
import type { Extraction } from "./extract.ts";

/**
 * `hu2023`: LLM-Adapters, generate and match. `lm-eval`: lm-evaluation-harness, mostly likelihoods of the choices.
 * `fastchat`: FastChat's llm_judge, conversations that another model judges.
 */
export const PROTOCOLS = ["hu2023", "lm-eval", "fastchat"] as const;
export type Protocol = (typeof PROTOCOLS)[number];

/** One question, whatever file it came from. */
export interface Document {
  /** What is asked, bare of any prompt. */
  readonly question: string;
  readonly passage?: string;
  /** Empty where the answer is free. */
  readonly choices: readonly string[];
  /** Index of the right choice; -1 where the answer is free. */
  readonly gold: number;
  /** The right answer: its choice, or the free answer with whatever reasoning the data has. */
  readonly target: string;
  /** Of a conversation: what the user says, turn by turn; the first is the question. */
  readonly turns?: readonly string[];
  /** How the data set numbers the row. */
  readonly id?: string | number;
  /** The part of the data set that it counts in. */
  readonly category?: string;
  /** The row as it was read. */
  readonly fields: Readonly<Record<string, unknown>>;
}

/** Rows of one split; a data set's own names, such as `test`, `validation`, `dev`. */
export type Split = string;

/** Where rows are found. */
export interface TaskData {
  /** Data set of the Hugging Face hub, `hf:org/name[:config]`; the split is added. */
  readonly hub?: string;
  /** Below `--data-dir`, by split: the first that exists, after `<task>/<split>.jsonl` and the like. */
  readonly files?: Readonly<Record<Split, readonly string[]>>;
  /** Folder below assets/ that holds all of it, as `<split>.jsonl`. */
  readonly bundled?: string;
  /** Columns of CSV files that have no header. */
  readonly columns?: readonly string[];
}

/** Solved questions in front of the one that is asked. */
export interface Shots {
  /** How many, unless another number is asked for. */
  readonly count: number;
  /** Split that they are taken from, or the questions themselves. */
  readonly from: Split | readonly Document[];
  /** `first`: always the first. `sampled`: drawn anew for every question, as the harness draws them. */
  readonly order: "first" | "sampled";
  /** Drawn besides and left out: the harness does so for tasks that have no test split. */
  readonly spare?: number;
}

interface FormBase {
  /** Of prompts and marking; goes up when a number could change. */
  readonly version: number;
  /** What the harness calls the task, where that is not its name here. */
  readonly harnessName?: string;
  /** The split that is measured. */
  readonly split: Split;
  readonly shots: Shots;
  /** Stands before all shots. */
  readonly description?: string;
  /** What rows must have for this form, though other forms do without. */
  readonly needs?: readonly "passage"[];
  /** The question as text. */
  prompt(document: Document): string;
}

/** The choice with the highest log-likelihood is the answer. */
export interface ChoiceForm extends FormBase {
  readonly kind: "choice";
  /** What may follow prompt and a blank; default the document's choices. */
  choices?(document: Document): readonly string[];
  /** `acc` by the sum of log-probabilities, `acc_norm` by that sum divided by the characters of the choice. */
  readonly metrics: readonly ("acc" | "acc_norm")[];
}

/** A way to read the answer out of generated text. */
export interface Reading {
  /** The harness calls it a filter. */
  readonly name: string;
  /** The rule, for the result: what decides the number must be named by it. */
  readonly rule: Extraction | string;
  /** The answer, or undefined where there is none, which is wrong. */
  read(text: string, document: Document): string | undefined;
  isCorrect(answer: string, document: Document): boolean;
}

/** The model writes, an answer is read out of it and compared. */
export interface GenerateForm extends FormBase {
  readonly kind: "generate";
  /** `instruction`: the prompt is one and goes into the template adapters are trained with. `text`: continued as it is. */
  readonly promptIs: "instruction" | "text";
  /** What stands between a shot's prompt and its answer. */
  readonly delimiter: string;
  readonly stop: readonly string[];
  readonly maxNewTokens: number;
  readonly metric: string;
  readonly readings: readonly Reading[];
  /** What a right output says, for rows to train on. */
  answer?(document: Document): string;
}

/** The model answers turn after turn, each with those before it in view; a judge marks what it said. */
export interface ConversationForm extends FormBase {
  readonly kind: "conversation";
  /** Most tokens of an answer; never more than a quarter of the context, so that all turns fit. */
  readonly maxNewTokens: number;
  /** Of drawing the answers to a document; 0 is greedy. */
  temperature(document: Document): number;
  /** Tokens that are drawn from, where any are drawn. */
  readonly topK?: number;
  /** Whether the judge is shown a reference answer. */
  isReferenced(document: Document): boolean;
  /** File below assets/ with the reference answers, as FastChat writes answers. */
  readonly references: string;
}

/** Forms whose rows are marked by themselves. */
export type RowForm = ChoiceForm | GenerateForm;
export type Form = RowForm | ConversationForm;

/** A file in tasks/ exports `tasks`, one or several of these; nothing else has to know of it. */
export interface Task {
  readonly name: string;
  /** For lists: what is asked. */
  readonly title: string;
  /** Groups that it counts in, outermost first; a group's name stands for all its tasks. */
  readonly groups?: readonly string[];
  readonly data: TaskData;
  readonly credit: { readonly source: string; readonly licence: string };
  readonly protocols: { readonly [P in Protocol]?: Form };
  /** Reads a row of any format the data come in, or says what it lacks. A row may hold several questions. */
  read(fields: Readonly<Record<string, unknown>>): Document | readonly Document[] | string;
}
