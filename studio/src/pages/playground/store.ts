/** @file The playground at work: asks all columns at once, takes in what comes, and can be told to stop. */
import { ApiError, ask, send } from "../../api/client.ts";
import { isWhole, requestOf, streamed } from "./request.ts";
import {
  type Answer,
  type Column,
  isBusy,
  isRunning,
  type Kept,
  keep,
  MOST_COLUMNS,
  type Problem,
  type Route,
  type State,
  type Turn,
} from "./state.ts";
import { eventsOf, isAbort } from "./stream.ts";

/** How often what has come is drawn, and kept. */
const DRAW_MS = 40;
const KEEP_MS = 500;

/** An event of either API. */
interface Piece {
  readonly choices?: readonly {
    readonly index?: number;
    readonly text?: string;
    readonly message?: { readonly content?: string | null };
    readonly delta?: { readonly content?: string | null };
    readonly finish_reason?: string | null;
  }[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number };
  };
  readonly x_milora?: { readonly routes: readonly (Route | null)[] };
}

export class Playground {
  readonly #storage: Kept;
  readonly #who: string;
  readonly #listeners = new Set<() => void>();
  /** By turn and column. */
  readonly #running = new Map<string, AbortController>();
  #state: State;
  #drawing: ReturnType<typeof setTimeout> | undefined;
  #keeping: ReturnType<typeof setTimeout> | undefined;

  constructor(state: State, storage: Kept, who: string) {
    this.#state = state;
    this.#storage = storage;
    this.#who = who;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  readonly state = (): State => this.#state;

  change(changes: Partial<State>): void {
    this.#state = { ...this.#state, ...changes };
    this.#changed(true);
  }

  set(name: string, value: string): void {
    this.change({ settings: { ...this.#state.settings, [name]: value } });
  }

  addColumn(model: string): void {
    const { columns } = this.#state;
    if (columns.length < MOST_COLUMNS) this.change({ columns: [...columns, { id: crypto.randomUUID(), model }] });
  }

  choose(id: string, model: string): void {
    const columns = this.#state.columns.map((column) => (column.id === id ? { ...column, model } : column));
    this.change({ columns });
  }

  removeColumn(id: string): void {
    this.stop(id);
    this.change({ columns: this.#state.columns.filter((column) => column.id !== id) });
  }

  /** Forgets what was said. */
  clear(): void {
    this.stop();
    this.change({ turns: [] });
  }

  /** Puts what is written to all columns. */
  send(): void {
    const { mode, prompt, columns, turns } = this.#state;
    if (isBusy(this.#state) || prompt.trim() === "" || columns.length === 0) return;
    const turn: Turn = { id: crypto.randomUUID(), mode, prompt, answers: {} };
    // Completions do not follow each other: only the last one is shown.
    const before = mode === "chat" ? turns.filter((one) => one.mode === "chat") : [];
    this.change({ turns: [...before, turn], ...(mode === "chat" && { prompt: "" }) });
    for (const column of columns) void this.#ask(turn.id, column);
  }

  /** Asks one column the last question once more. */
  again(column: Column): void {
    const last = this.#state.turns.at(-1);
    if (last && !this.#running.has(`${last.id} ${column.id}`)) void this.#ask(last.id, column);
  }

  /** Breaks off what is under way; the server stops at its next step. @param column only of this one */
  stop(column?: string): void {
    for (const [name, controller] of this.#running) {
      if (column === undefined || name.endsWith(` ${column}`)) controller.abort();
    }
  }

  /** Keeps what is there: the window may be about to go. */
  save(): void {
    clearTimeout(this.#keeping);
    this.#keeping = undefined;
    keep(this.#storage, this.#who, this.#state);
  }

  async #ask(turnId: string, { id, model }: Column): Promise<void> {
    const turn = this.#state.turns.find((one) => one.id === turnId)!;
    const request = requestOf(this.#state, id, model, turn);
    const controller = new AbortController();
    const name = `${turnId} ${id}`;
    this.#running.set(name, controller);
    const put = (changes: Partial<Answer>): void => this.#put(turnId, id, changes);
    put({
      ...{
        model,
        request,
        state: "waiting",
        text: "",
        more: [],
        finish: null,
        firstTokenMs: null,
        decodeMs: null,
        tokens: 0,
      },
      ...{ promptTokens: null, cachedTokens: null, route: null, problem: null },
    });
    try {
      const started = performance.now();
      if (isWhole(request)) {
        const { path, body } = request;
        const answer = await ask<Piece>(path, { method: "POST", json: body, signal: controller.signal });
        put({ ...changesOf(answer, this.#answer(turnId, id)), state: "done" });
        return;
      }
      const { path, body } = streamed(request);
      const response = await send(path, { method: "POST", json: body, signal: controller.signal });
      let first: number | undefined;
      for await (const event of eventsOf(response)) {
        const now = performance.now();
        const piece = event as Piece;
        if (piece.choices && piece.choices.length > 0) first ??= now;
        put({
          ...changesOf(piece, this.#answer(turnId, id)),
          state: "streaming",
          ...(first !== undefined && { firstTokenMs: first - started }),
          ...(first !== undefined && piece.choices?.length && { decodeMs: now - first }),
        });
      }
      put({ state: "done" });
    } catch (error) {
      put(isAbort(error) ? { state: "stopped" } : { state: "failed", problem: problemOf(error) });
    } finally {
      this.#running.delete(name);
      this.#changed(true);
    }
  }

  #answer(turn: string, column: string): Answer | undefined {
    return this.#state.turns.find(({ id }) => id === turn)?.answers[column];
  }

  #put(turn: string, column: string, changes: Partial<Answer>): void {
    const turns = this.#state.turns.map((one) => {
      if (one.id !== turn) return one;
      return { ...one, answers: { ...one.answers, [column]: { ...one.answers[column], ...changes } as Answer } };
    });
    this.#state = { ...this.#state, turns };
    this.#changed(false);
  }

  /** @param now what somebody did is seen at once; what comes in, a few times a second */
  #changed(now: boolean): void {
    this.#keeping ??= setTimeout(() => this.save(), KEEP_MS);
    if (!now) {
      this.#drawing ??= setTimeout(() => this.#changed(true), DRAW_MS);
      return;
    }
    clearTimeout(this.#drawing);
    this.#drawing = undefined;
    for (const listener of this.#listeners) listener();
  }
}

function changesOf({ choices, usage, x_milora: extra }: Piece, answer: Answer | undefined): Partial<Answer> {
  const texts = [answer?.text ?? "", ...(answer?.more ?? [])];
  for (const { index = 0, text, delta, message } of choices ?? []) {
    while (texts.length <= index) texts.push("");
    texts[index] += text ?? delta?.content ?? message?.content ?? "";
  }
  const [text = "", ...more] = texts;
  const finish = choices?.find(({ index = 0, finish_reason }) => index === 0 && finish_reason)?.finish_reason;
  return {
    ...(choices && choices.length > 0 && { text, more, tokens: (answer?.tokens ?? 0) + choices.length }),
    ...(finish && { finish }),
    ...(usage && {
      ...{ promptTokens: usage.prompt_tokens, tokens: usage.completion_tokens },
      cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? null,
    }),
    ...(extra && { route: extra.routes[0] ?? null }),
  };
}

function problemOf(error: unknown): Problem {
  if (!(error instanceof ApiError)) {
    const message = error instanceof Error ? error.message : String(error);
    return { status: 0, code: "UNEXPECTED", message, param: null, problems: [] };
  }
  const { status, code, message, param, problems } = error;
  return { status, code, message, param, problems };
}

/** What is said of answers that have come to their end, for who does not see them. */
export function summaryOf({ turns, columns }: State): string {
  const last = turns.at(-1);
  if (!last) return "";
  const answers = columns.flatMap(({ id }) => last.answers[id] ?? []);
  const running = answers.filter(isRunning).length;
  if (running > 0) return running === 1 ? "1 model is answering" : `${running} models are answering`;
  const words = { done: "answered", stopped: "stopped", failed: "failed", waiting: "", streaming: "" };
  return answers.map(({ model, state, tokens }) => `${model} ${words[state]}, ${tokens} tokens`).join("; ");
}
