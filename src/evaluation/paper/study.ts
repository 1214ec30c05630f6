/** @file What a table or figure is: the cells it needs, and how it is drawn from what they gave. */
import type { BackboneConfig } from "../../models/index.ts";
import type { RoutingMetrics } from "../../training/index.ts";
import type { Score, Scores } from "../judge/index.ts";
import type { Preset } from "./presets.ts";

/** An adapter to be trained. */
export interface Training {
  readonly method: string;
  /** Where its rows come from: names of tasks, or of a corpus of data.ts. Several are mixed. */
  readonly data: readonly string[];
  readonly seed: number;
  /** Settings of the adapter over those of the preset. */
  readonly adapter?: Readonly<Record<string, unknown>>;
  /** Another backbone than the preset's. */
  readonly model?: string;
}

export type Seedless = Omit<Training, "seed">;

/** One thing to be measured. Equal cells of several tables are measured once. */
export type Cell =
  /** Answers to all rows of a task. */
  | { readonly kind: "accuracy"; readonly training: Training; readonly task: string }
  /** The experts that each layer chooses for the prompts of a task. */
  | { readonly kind: "routes"; readonly training: Training; readonly task: string }
  /** Decoding of single sequences in a process of its own. */
  | { readonly kind: "speed"; readonly training: Training; readonly beams: number }
  /** Two turns of MT-Bench under a judge's eyes. */
  | { readonly kind: "judged"; readonly training: Training }
  /** Rows of a data set, and how many test rows its training rows hold. */
  | { readonly kind: "rows"; readonly source: string };

export type Kind = Cell["kind"];
export type CellOf<K extends Kind> = Extract<Cell, { readonly kind: K }>;

/** What measured cells give. */
export interface Values {
  readonly accuracy: {
    readonly metric: string;
    readonly value: number;
    readonly interval: readonly [number, number];
    /** 0 or 1 for each row. */
    readonly scores: readonly number[];
    /** What was read out of each output. */
    readonly answers: readonly (string | null)[];
    /** All that decided the number, without the rows. */
    readonly result: object;
  };
  readonly routes: RoutingMetrics;
  readonly speed: {
    readonly tokensPerSecond: number;
    readonly prefillMs: number;
    readonly peakMib: number;
    readonly rounds: readonly number[];
  };
  readonly judged: {
    /** Mean rating, 1 to 10; null where nothing has one. */
    readonly value: number | null;
    readonly interval: readonly [number, number] | null;
    readonly unjudged: number;
    /** The judge's own name of itself. */
    readonly judge: string;
    readonly scores: Scores<Score>;
    /** Each rating, in the order of questions and turns. */
    readonly ratings: readonly (number | null)[];
    /** All that decided the answers, without them. */
    readonly result: object;
  };
  readonly rows: {
    readonly train: number | null;
    readonly dev: number | null;
    readonly test: number | null;
    /** Test rows that share 13 words in a row with a training row; null where that was not looked for. */
    readonly overlap: number | null;
  };
}

/** Finished cells. */
export interface Results {
  get<K extends Kind>(cell: CellOf<K>): Values[K] | undefined;
}

/** The preset with the flags over it, and what its names stand for. */
export interface Scope extends Preset {
  /** Of the model; that of a known shape while the model is not here, undefined where nothing is known. */
  readonly backbone: BackboneConfig | undefined;
  /** The tasks of a name, which may be that of a group. */
  tasksOf(name: string): readonly string[];
}

/** A number with its spread over seeds. */
export interface Figure {
  /** Median. */
  readonly value: number;
  readonly low: number;
  readonly high: number;
  readonly seeds: number;
}

export interface Column {
  readonly key: string;
  readonly title: string;
  /** Digits after the point of numbers, default 1; `plain`: as many as it takes. */
  readonly digits?: number | "plain";
}

export type Value = string | number | Figure | null | undefined;

export interface Table {
  /** Of its files. */
  readonly name: string;
  readonly title: string;
  readonly columns: readonly Column[];
  readonly rows: readonly Readonly<Record<string, Value>>[];
  readonly notes?: readonly string[];
}

/** A line in a chart. */
export interface Line {
  readonly label: string;
  readonly points: readonly (readonly [x: number, y: number])[];
  /** For each point, the least and the most over seeds. */
  readonly spread?: readonly (readonly [low: number, high: number])[];
  readonly colour: number;
  readonly dashed?: boolean;
}

export type Chart =
  | {
      readonly kind: "lines";
      readonly name: string;
      readonly title: string;
      readonly x: string;
      /** Points lie at 0, 1, … and are called this. */
      readonly labels?: readonly string[];
      readonly lines: readonly Line[];
    }
  | {
      readonly kind: "shares";
      readonly name: string;
      readonly title: string;
      readonly rows: readonly string[];
      /** For each layer, the share of each row. */
      readonly columns: readonly (readonly number[])[];
      /** Share of the full colour. */
      readonly most: number;
      readonly from: string;
      readonly to: string;
    };

export interface Section {
  readonly tables: readonly Table[];
  readonly charts: readonly Chart[];
}

/** A file in studies/ exports `study`, one of these; nothing else has to know of it. */
export interface Study {
  /** As on the command line: `table1`, `fig2`. */
  readonly name: string;
  readonly title: string;
  /** What is compared, in a sentence. */
  readonly about: string;
  cells(scope: Scope): readonly Cell[];
  render(scope: Scope, results: Results): Section;
}

/** JSON with the keys of all objects in order, so that equal things have one text. */
export function canonical(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) =>
    part !== null && typeof part === "object" && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}
