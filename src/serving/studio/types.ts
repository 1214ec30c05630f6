/** @file What the studio's pages ask for and get: the one description that both sides are checked against. */
export type * from "./sweep-types.ts";

/** Who looks, and what there is to see. */
export interface StudioSession {
  /** False: sign in with a key first. */
  readonly signedIn: boolean;
  /** Whether there is a key to sign out of; an open server needs none. */
  readonly byKey: boolean;
  readonly role: "admin" | "tenant" | null;
  readonly tenant: string | null;
  readonly version: string;
  /** Null where only runs are shown (`milora studio`). */
  readonly server: {
    /** What requests call the backbone. */
    readonly base: string;
    readonly context: number;
    readonly layers: number;
    /** Whether chats can be put to the model. */
    readonly chat: boolean;
  } | null;
  /** Whether runs are shown: administrators see them where the server was given folders of runs. */
  readonly runs: boolean;
  /** Whether grids that workers do are shown: to administrators, where there is a PostgreSQL that may have them. */
  readonly sweeps: boolean;
}

/** `running`: a process trains into it now; `finished`: it came to its end; `stopped`: it can be resumed. */
export type RunState = "running" | "finished" | "stopped";

export interface RunSummary {
  /** Path below the folder of runs, `/` between its parts. */
  readonly id: string;
  readonly name: string;
  readonly state: RunState;
  readonly method: string;
  /** Last part of the backbone's path. */
  readonly model: string;
  readonly rank: number | null;
  readonly routed: boolean;
  /** Optimizer steps done, and planned where that is known. */
  readonly step: number;
  readonly plannedSteps: number | null;
  readonly epoch: number;
  /** Cross entropy of the last step, nats a token. */
  readonly loss: number | null;
  readonly bestPerplexity: number | null;
  readonly bestStep: number | null;
  readonly tokens: number;
  readonly tokensPerSecond: number | null;
  /** Of all steps. */
  readonly seconds: number;
  /** ISO 8601. */
  readonly startedAt: string | null;
  readonly updatedAt: string;
  /** Share of its metrics.jsonl that has been read; below 1 the numbers are of that part, and asking again tells more. */
  readonly indexed: number;
  /** Lines of metrics.jsonl that are damaged and were left out. */
  readonly damagedLines: number;
  /** Why it cannot be shown; the rest is then empty. */
  readonly problem: string | null;
}

export interface RunEvaluation {
  readonly step: number;
  readonly epoch: number;
  readonly loss: number | null;
  readonly perplexity: number | null;
  readonly best: boolean;
  /** Routed methods: entropy of the routers by layer, bits; distinct routes of the dev rows. */
  readonly entropy: readonly (number | null)[] | null;
  readonly routes: number | null;
}

export interface RunDetail extends RunSummary {
  readonly config: Readonly<Record<string, unknown>>;
  readonly environment: Readonly<Record<string, unknown>> | null;
  readonly evaluations: readonly RunEvaluation[];
}

/** One quantity over a range of steps: of each point the mean, the least and the largest of the steps it stands for. */
export interface RunSeriesPart {
  /** `loss`, `lm_loss`, `lr`, `grad_norm`, `tokens_per_second`, `auxiliary.NAME`, `activation.lr`, `activation.lm_loss`. */
  readonly name: string;
  readonly mean: readonly (number | null)[];
  readonly min: readonly (number | null)[];
  readonly max: readonly (number | null)[];
}

/** A run's steps, never more points than asked for, however many steps there are. */
export interface RunSeries {
  /** Steps there are in the whole run. */
  readonly steps: number;
  /** First and last step of the range. */
  readonly from: number;
  readonly to: number;
  /** As of the run. */
  readonly indexed: number;
  /** First step of each point. */
  readonly step: readonly number[];
  readonly series: readonly RunSeriesPart[];
}

/** Shares of the experts among those that were active, over training. */
export interface RunExperts {
  readonly experts: readonly string[];
  readonly layers: number;
  /** As of the run. */
  readonly indexed: number;
  readonly step: readonly number[];
  /** [points][layers][experts] */
  readonly shares: readonly (readonly (readonly number[])[])[];
}

export interface LearnedCurve {
  readonly layer: number;
  /** The sub-layer, where there is one function for each. */
  readonly block: string | null;
  /** Largest distance from GELU on the range. */
  readonly deviation: number;
  readonly y: readonly number[];
}

/** Activation functions of the best adapter. */
export interface RunActivations {
  readonly x: readonly number[];
  readonly gelu: readonly number[];
  readonly curves: readonly LearnedCurve[];
}

/** What `milora reproduce` has written somewhere below a folder of runs. */
export interface ReproductionSummary {
  readonly id: string;
  readonly preset: string;
  readonly model: string;
  /** ISO 8601. */
  readonly made: string;
  readonly studies: readonly {
    readonly name: string;
    readonly title: string;
    readonly cells: number;
    readonly done: number;
  }[];
}

/** A number with its spread over seeds. */
export interface ReproducedFigure {
  /** Median. */
  readonly value: number | null;
  readonly low: number | null;
  readonly high: number | null;
  readonly seeds: number;
}

export interface ReproducedTable {
  readonly name: string;
  readonly title: string;
  /** `digits`: after the point of numbers, default 1; `plain`: as many as it takes. */
  readonly columns: readonly {
    readonly key: string;
    readonly title: string;
    readonly digits?: number | "plain" | undefined;
  }[];
  readonly rows: readonly Readonly<Record<string, string | number | ReproducedFigure | null | undefined>>[];
  readonly notes?: readonly string[] | undefined;
}

export type ReproducedChart =
  | {
      readonly kind: "lines";
      readonly name: string;
      readonly title: string;
      readonly x: string;
      /** Points lie at 0, 1, … and are called this. */
      readonly labels?: readonly string[] | undefined;
      readonly lines: readonly {
        readonly label: string;
        readonly points: readonly (readonly [x: number, y: number | null])[];
        /** For each point, the least and the most over seeds. */
        readonly spread?: readonly (readonly [low: number | null, high: number | null])[] | undefined;
        readonly dashed?: boolean | undefined;
      }[];
    }
  | {
      readonly kind: "shares";
      readonly name: string;
      readonly title: string;
      readonly rows: readonly string[];
      /** For each layer, the share of each row. */
      readonly columns: readonly (readonly (number | null)[])[];
      /** Share of the full colour. */
      readonly most: number;
      readonly from: string;
      readonly to: string;
    };

/** What results.json holds: the paper's tables and figures, measured. */
export interface Reproduction {
  readonly id: string;
  readonly preset: string;
  readonly model: string;
  readonly seeds: number;
  readonly methods: number;
  readonly machine: string;
  /** ISO 8601. */
  readonly made: string;
  readonly studies: readonly {
    readonly name: string;
    readonly title: string;
    readonly about: string;
    readonly tables: readonly ReproducedTable[];
    readonly charts: readonly ReproducedChart[];
    readonly cells: number;
    readonly done: number;
    /** Reasons why cells were left out. */
    readonly skipped: readonly string[];
  }[];
  readonly differences: readonly {
    readonly setting: string;
    readonly paper: string;
    readonly here: string;
    readonly methods: readonly string[];
  }[];
  readonly failures: readonly { readonly label: string; readonly code: string; readonly reason: string }[];
}

/** An adapter that routes prompts, and that one may use. */
export interface RoutedAdapter {
  /** As a `model`. */
  readonly name: string;
  readonly method: string;
  readonly rank: number | null;
}

export interface ExploreRequest {
  /** `model` names; at most 4, all of methods that route. */
  readonly adapters: readonly string[];
  readonly prompt: string;
  /** `raw`: as it is; `chat`: as a user's message, in the server's chat format; `alpaca`: as training puts instructions. */
  readonly format: "raw" | "chat" | "alpaca";
}

export interface LayerRoute {
  /** Of each expert, in the order of `experts`. */
  readonly probabilities: readonly number[];
  /** Indices into `experts`. */
  readonly chosen: readonly number[];
  /** The pooler's attention over the prompt's tokens, [T], sums to 1; null for a pooler that has none. */
  readonly attention: readonly number[] | null;
}

export interface AdapterRoute {
  readonly adapter: string;
  readonly digest: string;
  readonly method: string;
  readonly experts: readonly string[];
  /** `self_attention`, `mean`, `max` or `last`. */
  readonly pooler: string;
  readonly layers: readonly LayerRoute[];
}

export interface ExploreToken {
  readonly id: number;
  readonly text: string;
  /** In hexadecimal, where the token has no text by itself: a part of a character that the next ones complete. */
  readonly bytes?: string;
}

export interface ExploreResult {
  /** Joined, the texts are the prompt. */
  readonly tokens: readonly ExploreToken[];
  readonly routes: readonly AdapterRoute[];
}

/** Data sets that Figure 2 can be drawn for without uploading one. */
export interface NamedData {
  readonly name: string;
  readonly rows: number;
}

export interface ExploreDataRequest {
  readonly adapter: string;
  /** One of the server's data sets … */
  readonly name?: string;
  /** … or rows: JSON lines, a JSON list or CSV, as for training. */
  readonly text?: string;
  readonly format?: "jsonl" | "json" | "csv";
  /** Only the first rows; default and most 2000. */
  readonly limit?: number;
  /** How rows become prompts, as for training; default `alpaca`. */
  readonly template?: "alpaca" | "chat" | "none";
}

/** Figure 2: how often each expert is active, by layer. */
export interface ExploreDataResult {
  readonly rows: number;
  readonly experts: readonly string[];
  /** [layers][experts]: share of the prompts for which the expert is active. */
  readonly active: readonly (readonly number[])[];
  /** [layers]: entropy of the router's probabilities, bits. */
  readonly entropy: readonly number[];
  /** Distinct routes. */
  readonly routes: number;
  /** [layers]: what the active experts tell of the rows' answers, bits, and the same by chance; empty without answers. */
  readonly information: readonly number[];
  readonly informationByChance: readonly number[];
  /** Of the answers: the most that a route can tell of them, bits. */
  readonly labelEntropy: number;
}

/** Lines of the answer to `ExploreDataRequest`, JSON each: progress, then the result or an error. */
export type ExploreDataLine =
  | { readonly done: number; readonly total: number }
  | { readonly result: ExploreDataResult }
  | { readonly error: { readonly code: string; readonly message: string } };

/** What the server does now. */
export interface ServerStatus {
  readonly uptimeSeconds: number;
  readonly draining: boolean;
  readonly waiting: number;
  readonly running: number;
  /** Sequences that decode, and different adapters among them. */
  readonly rows: number;
  readonly adapters: number;
  readonly kvTokens: number;
  readonly kvBytes: number;
  readonly residentAdapters: number;
  readonly residentBytes: number;
  readonly residentLimitBytes: number;
  readonly prefixCacheBytes: number;
  readonly rssBytes: number;
  readonly limits: { readonly maxBatch: number; readonly maxWaiting: number };
  readonly tenants: readonly { readonly tenant: string; readonly waiting: number; readonly running: number }[];
}

/** The last minutes, a column for each quantity; the last point is of the last whole second. */
export interface ServerHistory {
  /** Seconds since 1970 of the first point; one point a second. */
  readonly from: number;
  readonly waiting: readonly number[];
  readonly running: readonly number[];
  readonly tokens: readonly number[];
  readonly requests: readonly number[];
  readonly errors: readonly number[];
  /** Milliseconds; null in seconds without any. */
  readonly firstTokenP50: readonly (number | null)[];
  readonly firstTokenP95: readonly (number | null)[];
  readonly betweenTokensP50: readonly (number | null)[];
  readonly betweenTokensP95: readonly (number | null)[];
}

/** A request that was answered with an error. No prompt, no key, no message that could hold one. */
export interface ServerErrorEntry {
  /** ISO 8601. */
  readonly at: string;
  readonly requestId: string;
  readonly method: string;
  readonly route: string;
  readonly status: number;
  readonly code: string;
  readonly tenant: string | null;
  readonly adapter: string | null;
}
