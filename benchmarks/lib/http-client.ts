/** @file A client that notes when each event of a stream arrives, and can leave in its middle. It does little else: it shares the machine with the server. */
import { Agent, request as httpRequest, type IncomingMessage } from "node:http";

export interface Ask {
  readonly agent: Agent;
  readonly url: string;
  readonly method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly key?: string | undefined;
  /** An object is sent as JSON, bytes as they are. */
  readonly body?: object | string | Uint8Array;
  readonly contentType?: string;
  /** Hang up after this many events of the answer; 0: as soon as the request is sent. */
  readonly cutAfter?: number | undefined;
  /** Send only this many bytes of the body, then hang up. */
  readonly cutBodyAt?: number | undefined;
  /** Told of each event of the answer. */
  readonly onEvent?: (() => void) | undefined;
}

export interface Answer {
  readonly status: number;
  readonly text: string;
  /** `error.code` of a body that tells an error, or of an event that does. */
  readonly code: string | undefined;
  /** This side hung up. */
  readonly cut: boolean;
  /** When events of a stream arrived, ms since the request was sent. */
  readonly eventMs: readonly number[];
  /** A stream that came to its end. */
  readonly done: boolean;
  /** `usage.completion_tokens`, NaN where it was not told. */
  readonly tokens: number;
}

const EVENT = "data: ";
/** Bytes of a body that is sent again, if need be. */
const SMALL = 64 * 1024;

/** Where a connection is neither a request's nor the agent's, what fails on it is nobody's business. */
const ignored = (): void => {};

/** Resolves with every answer, whatever its status. @throws what the connection fails with, unless this side hung up */
export function send(ask: Ask): Promise<Answer> {
  const { body = "", cutAfter, cutBodyAt, onEvent } = ask;
  const bytes = body instanceof Uint8Array ? body : Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const answer = { status: 0, text: "", code: undefined as string | undefined, cut: false, done: false };
    const eventMs: number[] = [];
    let tokens = Number.NaN;
    const finish = () => resolve({ ...answer, eventMs, tokens });
    const request = httpRequest(ask.url, {
      agent: ask.agent,
      method: ask.method ?? (ask.body === undefined ? "GET" : "POST"),
      headers: {
        ...(ask.body !== undefined && {
          "content-type": ask.contentType ?? "application/json",
          "content-length": bytes.length,
        }),
        ...(ask.key !== undefined && { authorization: `Bearer ${ask.key}` }),
      },
    });
    const cut = () => {
      answer.cut = true;
      request.destroy();
      finish();
    };
    request.on("socket", (socket) => {
      if (!socket.listeners("error").includes(ignored)) socket.on("error", ignored);
    });
    request.on("error", (error) => {
      if (answer.cut) return;
      // An open connection may be closed at the moment it is used again; whoever keeps connections asks once more.
      const again = request.reusedSocket && answer.status === 0 && bytes.length < SMALL;
      if (again) send({ ...ask, agent: new Agent() }).then(resolve, reject);
      else reject(error);
    });
    request.on("response", (response: IncomingMessage) => {
      answer.status = response.statusCode ?? 0;
      const events = response.headers["content-type"]?.startsWith("text/event-stream") ?? false;
      let rest = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        if (!events) {
          answer.text += chunk;
          return;
        }
        const now = performance.now() - began;
        const parts = (rest + chunk).split("\n\n");
        rest = parts.pop() ?? "";
        for (const part of parts) {
          if (!part.startsWith(EVENT)) continue;
          if (part === `${EVENT}[DONE]`) answer.done = true;
          else if (part.startsWith(`${EVENT}{"error"`)) answer.code = codeOf(part.slice(EVENT.length)) ?? "UNKNOWN";
          else if (part.includes('"choices":[]')) tokens = tokensOf(part.slice(EVENT.length));
          else {
            eventMs.push(now);
            onEvent?.();
          }
        }
        if (cutAfter !== undefined && eventMs.length >= cutAfter) cut();
      });
      response.on("end", () => {
        if (!events) {
          answer.code = codeOf(answer.text);
          tokens = tokensOf(answer.text);
        }
        finish();
      });
      response.on("error", (error) => (answer.cut ? undefined : reject(error)));
    });
    if (cutBodyAt !== undefined) request.write(bytes.subarray(0, cutBodyAt), () => setTimeout(cut, 5));
    else request.end(bytes, () => (cutAfter === 0 ? setTimeout(cut, 2) : undefined));
  });
}

function codeOf(text: string): string | undefined {
  try {
    const { error } = JSON.parse(text) as { error?: { code?: unknown } };
    return error && String(error.code);
  } catch {
    return undefined;
  }
}

function tokensOf(text: string): number {
  try {
    const { usage } = JSON.parse(text) as { usage?: { completion_tokens?: number } };
    return usage?.completion_tokens ?? Number.NaN;
  } catch {
    return Number.NaN;
  }
}
