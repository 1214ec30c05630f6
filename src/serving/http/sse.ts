/** @file Answers that come in pieces, as server-sent events or as lines: written no faster than the client reads, ended when it is gone. */
import { once } from "node:events";
import type { FastifyReply } from "fastify";

/** How pieces are told apart. */
interface StreamForm {
  readonly type: string;
  frame(text: string): string;
}

export const EVENTS: StreamForm = { type: "text/event-stream; charset=utf-8", frame: (text) => `data: ${text}\n\n` };
/** A JSON value a line. */
export const LINES: StreamForm = { type: "application/x-ndjson; charset=utf-8", frame: (text) => `${text}\n` };

const HEADERS = {
  "cache-control": "no-cache, no-store",
  // A proxy that gathers the answer would make it no stream.
  "x-accel-buffering": "no",
};

/** The client left, or has not read for too long. */
export class StreamClosedError extends Error {}

/** The stream of one answer. Its headers are sent with the first event. */
export class EventStream {
  readonly #reply: FastifyReply;
  readonly #stallMs: number;
  readonly #form: StreamForm;
  #begun = false;

  /** @param stallMs how long a client may leave written data unread */
  constructor(reply: FastifyReply, stallMs: number, form = EVENTS) {
    this.#reply = reply;
    this.#stallMs = stallMs;
    this.#form = form;
  }

  /** Whether headers are sent, after which an error can only be an event. */
  get begun(): boolean {
    return this.#begun;
  }

  /** @throws StreamClosedError */
  async send(data: unknown): Promise<void> {
    const { raw } = this.#reply;
    if (raw.destroyed || raw.writableEnded) throw new StreamClosedError("the client has gone");
    if (!this.#begun) this.#begin();
    if (raw.write(this.#form.frame(typeof data === "string" ? data : JSON.stringify(data)))) return;
    const stalled = AbortSignal.timeout(this.#stallMs);
    try {
      // `once` rejects on an error; a closed response emits only "close".
      const stop = new AbortController();
      const signal = AbortSignal.any([stalled, stop.signal]);
      try {
        await Promise.race([once(raw, "drain", { signal }), once(raw, "close", { signal })]);
      } finally {
        stop.abort();
      }
    } catch {
      raw.destroy();
    }
    if (raw.destroyed) throw new StreamClosedError("the client has gone, or reads nothing");
  }

  end(): void {
    if (!this.#reply.raw.destroyed) this.#reply.raw.end();
  }

  #begin(): void {
    this.#begun = true;
    this.#reply.hijack();
    const own = this.#reply.getHeaders() as Record<string, string>;
    this.#reply.raw.writeHead(200, { ...own, ...HEADERS, "content-type": this.#form.type });
  }
}
