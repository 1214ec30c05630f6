/** @file What the playground holds: columns, what was asked and answered, settings; kept for as long as the window is open. */

export type Mode = "chat" | "completion";

export const MOST_COLUMNS = 4;
/** Older questions are forgotten. */
const MOST_TURNS = 50;

export interface Column {
  readonly id: string;
  /** As requests name it. */
  readonly model: string;
}

export interface Route {
  readonly experts: readonly string[];
  readonly layers: readonly { readonly chosen: readonly string[]; readonly probabilities: readonly number[] }[];
}

export interface Problem {
  readonly status: number;
  readonly code: string;
  readonly message: string;
  readonly param: string | null;
  readonly problems: readonly string[];
}

export interface SentRequest {
  readonly path: string;
  readonly body: Readonly<Record<string, unknown>>;
}

/** What one model said to one question. */
export interface Answer {
  readonly model: string;
  readonly state: "waiting" | "streaming" | "done" | "stopped" | "failed";
  readonly text: string;
  /** Further answers, where several were asked for. */
  readonly more: readonly string[];
  /** As it was sent, without what only streaming needs. */
  readonly request: SentRequest;
  readonly finish: string | null;
  readonly firstTokenMs: number | null;
  /** From the first token to the last. */
  readonly decodeMs: number | null;
  /** Events with text so far; the server's own count once it has told it. */
  readonly tokens: number;
  readonly promptTokens: number | null;
  readonly cachedTokens: number | null;
  readonly route: Route | null;
  readonly problem: Problem | null;
}

export interface Turn {
  readonly id: string;
  readonly mode: Mode;
  readonly prompt: string;
  /** By column. */
  readonly answers: Readonly<Record<string, Answer>>;
}

/** As typed; empty: the server's own choice. */
export type Settings = Readonly<Record<string, string>>;

export interface State {
  readonly mode: Mode;
  readonly columns: readonly Column[];
  readonly system: string;
  readonly prompt: string;
  readonly settings: Settings;
  readonly goOn: boolean;
  readonly turns: readonly Turn[];
}

export function firstState(mode: Mode): State {
  return {
    ...{ mode, columns: [], system: "", prompt: "", goOn: false, turns: [] },
    settings: { max_tokens: "128", temperature: "0.7" },
  };
}

export const isRunning = ({ state }: Answer): boolean => state === "waiting" || state === "streaming";

export function isBusy({ turns }: State): boolean {
  return turns.some(({ answers }) => Object.values(answers).some(isRunning));
}

/** Tokens a second after the first one; a beam search tells them all at its end. */
export function speedOf({ tokens, decodeMs, request }: Answer): number | null {
  const { beam_width: beams } = request.body;
  return !(typeof beams === "number" && beams > 1) && decodeMs !== null && decodeMs > 0 && tokens > 1
    ? ((tokens - 1) * 1000) / decodeMs
    : null;
}

/** A browser's `sessionStorage`. */
export type Kept = object & {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
};

const PREFIX = "milora-playground:";

/** Reads what was kept for `who`, and forgets what was kept for anybody else: the window may have changed hands. */
export function recall(storage: Kept, who: string, first: State): State {
  for (const key of Object.keys(storage)) {
    if (key.startsWith(PREFIX) && key !== PREFIX + who) storage.removeItem(key);
  }
  try {
    const kept = JSON.parse(storage.getItem(PREFIX + who) ?? "null") as Partial<State> | null;
    if (kept === null) return first;
    const turns = (kept.turns ?? []).map((turn) => ({ ...turn, answers: mapped(turn.answers, ended) }));
    return { ...first, ...kept, turns };
  } catch {
    return first; // of another version
  }
}

export function keep(storage: Kept, who: string, state: State): void {
  try {
    storage.setItem(PREFIX + who, JSON.stringify({ ...state, turns: state.turns.slice(-MOST_TURNS) }));
  } catch {
    // full, or not allowed: it is only not remembered
  }
}

/** What was under way when the window was left has been stopped. */
function ended(answer: Answer): Answer {
  const whole = { ...answer, more: answer.more ?? [] }; // an earlier version knew of one only
  return isRunning(whole) ? { ...whole, state: "stopped" } : whole;
}

export function mapped<A, B>(of: Readonly<Record<string, A>>, change: (value: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(of).map(([key, value]) => [key, change(value)]));
}
