/** @file What milora asks of an S3-compatible store: put, get, look at, list and delete objects, patiently but not forever. */
import { createReadStream } from "node:fs";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { AwsV4Signer } from "aws4fetch";
import { reasonOf } from "../../../base/index.ts";
import type { BucketLocation } from "./location.ts";

const ATTEMPTS = 3;
/** Between attempts, doubled each time. */
const PAUSE_MS = 200;
/** Nothing has moved for so long: it does not answer. */
const STALL_MS = 10_000;
const CHUNK = 1024 * 1024;
/** Of an answer that is no object: a thousand keys, escaped, with all that is said of each. */
const MOST_TEXT = 16 * 1024 * 1024;

/**
 * `away`: it does not answer, or not now. `broken`: the connection ended within an answer. `refused`: it says no, and will
 * again. `missing`: there is no such object.
 */
type FailureKind = "away" | "broken" | "refused" | "missing";

/** What keeps a request from being answered; the text is for who runs the server. */
export class BucketError extends Error {
  readonly kind: FailureKind;

  constructor(kind: FailureKind, message: string, options?: { cause: unknown }) {
    super(message, options);
    this.kind = kind;
  }
}

export interface ObjectFacts {
  readonly key: string;
  readonly bytes: number;
  /** By the store's clock, ms since 1970. */
  readonly modified: number;
}

interface Request {
  readonly query?: Readonly<Record<string, string>>;
  readonly headers?: Readonly<Record<string, string>>;
  /** Made anew for each attempt. @param moved to be called whenever something was sent */
  readonly body?: (moved: () => void) => ReadableStream;
  /** The content of the answer is read by who asks. */
  readonly streamed?: boolean;
  readonly signal?: AbortSignal | undefined;
}

interface Answer {
  readonly response: Response;
  readonly text: string;
}

/** Ends what nothing moves in any more. */
class Watch implements Disposable {
  readonly #abort = new AbortController();
  readonly #ms: number;
  #timer: NodeJS.Timeout;

  constructor(ms: number) {
    this.#ms = ms;
    this.#timer = this.#wait();
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  readonly moved = (): void => {
    clearTimeout(this.#timer);
    this.#timer = this.#wait();
  };

  #wait(): NodeJS.Timeout {
    const late = new BucketError("away", `nothing came for ${this.#ms / 1000} s`);
    return setTimeout(() => this.#abort.abort(late), this.#ms).unref();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

export class Bucket {
  readonly #location: BucketLocation;
  readonly #stallMs: number;
  readonly #pauseMs: number;

  constructor(
    location: BucketLocation,
    { stallMs = STALL_MS, pauseMs = PAUSE_MS }: { readonly stallMs?: number; readonly pauseMs?: number } = {},
  ) {
    this.#location = location;
    this.#stallMs = stallMs;
    this.#pauseMs = pauseMs;
  }

  /** Appears whole or not at all: the store compares length and digest. @throws BucketError */
  async put(key: string, path: string, bytes: number, sha256: string): Promise<void> {
    const headers = { "content-length": String(bytes), "x-amz-content-sha256": sha256 };
    const body = (moved: () => void): ReadableStream =>
      Readable.toWeb(Readable.from(contentsOf(path, moved))) as ReadableStream;
    await this.#send("PUT", key, { headers, body });
  }

  /** @throws BucketError, also while the content is read; missing: there is no such object */
  async get(
    key: string,
    signal: AbortSignal,
  ): Promise<{ readonly bytes: number; readonly content: AsyncIterable<Uint8Array> }> {
    const { response } = await this.#send("GET", key, { signal, streamed: true });
    return { bytes: numberOf(response.headers.get("content-length")), content: this.#contentOf(response, signal) };
  }

  /** Undefined: there is no such object. @throws BucketError */
  async look(key: string): Promise<ObjectFacts | undefined> {
    try {
      const { headers } = (await this.#send("HEAD", key, {})).response;
      const modified = Date.parse(headers.get("last-modified") ?? "");
      return { key, bytes: numberOf(headers.get("content-length")), modified };
    } catch (error) {
      if (error instanceof BucketError && error.kind === "missing") return undefined;
      throw error;
    }
  }

  /** It is no failure if it is gone already. @throws BucketError, the signal's reason */
  async delete(key: string, signal?: AbortSignal): Promise<void> {
    try {
      await this.#send("DELETE", key, { signal });
    } catch (error) {
      if (!(error instanceof BucketError && error.kind === "missing")) throw error;
    }
  }

  /**
   * Keys that begin with `prefix`, a page at a time.
   * @returns `now` by the store's own clock
   * @throws BucketError, the signal's reason
   */
  async *list(
    prefix: string,
    { most, signal }: { readonly most?: number; readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<{ readonly now: number; readonly found: ObjectFacts[] }> {
    for (let token: string | undefined; ; ) {
      const query = {
        ...{ "list-type": "2", "encoding-type": "url", prefix },
        ...(most !== undefined && { "max-keys": String(most) }),
        ...(token !== undefined && { "continuation-token": token }),
      };
      const { response, text } = await this.#send("GET", "", { query, signal });
      const now = Date.parse(response.headers.get("date") ?? "") || Date.now();
      yield { now, found: objectsOf(text) };
      const before = token;
      token = elementOf(text, "NextContinuationToken");
      if (most !== undefined || token === undefined || elementOf(text, "IsTruncated") !== "true") return;
      if (token === before)
        throw new BucketError("refused", "a list of its objects goes on with what was there before");
    }
  }

  async *#contentOf({ body }: Response, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    if (!body) throw new BucketError("broken", "its answer has no content");
    using watch = new Watch(this.#stallMs);
    const reader = body.getReader();
    const stop = (): void =>
      void reader.cancel(watch.signal.aborted ? watch.signal.reason : signal.reason).catch(() => {});
    watch.signal.addEventListener("abort", stop, { once: true });
    try {
      for (;;) {
        const { done, value } = await reader.read();
        watch.signal.throwIfAborted();
        if (done) return;
        watch.moved();
        yield value;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof BucketError) throw error;
      throw new BucketError("broken", failureOf(error).message, { cause: error });
    } finally {
      stop();
    }
  }

  /**
   * The answer to a request that may be repeated, as all of them may, with its text unless that is streamed.
   * @throws BucketError, the signal's reason
   */
  async #send(method: string, key: string, request: Request): Promise<Answer> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#attempt(method, key, request);
      } catch (error) {
        request.signal?.throwIfAborted();
        const failure = failureOf(error);
        if (failure.kind !== "away" || attempt === ATTEMPTS) throw failure;
        await sleep(this.#pauseMs * 2 ** (attempt - 1) * (0.5 + Math.random()), undefined, { signal: request.signal });
      }
    }
  }

  async #attempt(
    method: string,
    key: string,
    { query = {}, headers = {}, body, streamed, signal }: Request,
  ): Promise<Answer> {
    const { url: base, prefix, region, accessKeyId, secretAccessKey, sessionToken } = this.#location;
    const path = (key === "" ? "" : prefix + key).split("/").map(encodeURIComponent).join("/");
    const url = new URL(path === "" ? base.replace(/\/$/, "") : path, base);
    for (const [name, value] of Object.entries(query))
      url.searchParams.set(name, name === "prefix" ? prefix + value : value);
    const who = { accessKeyId, secretAccessKey, ...(sessionToken && { sessionToken }) };
    const signed = await new AwsV4Signer({ method, url: url.href, headers, region, service: "s3", ...who }).sign();
    using watch = new Watch(this.#stallMs);
    const response = await fetch(signed.url, {
      ...{ method, headers: signed.headers, redirect: "manual" },
      ...(body && { body: body(watch.moved), duplex: "half" }),
      signal: signal ? AbortSignal.any([signal, watch.signal]) : watch.signal,
    } as RequestInit);
    if (response.ok && streamed) return { response, text: "" };
    const text = await textOf(response, watch.moved);
    if (response.ok) return { response, text };
    const { status } = response;
    const code = elementOf(text, "Code");
    const said = [String(status), code, elementOf(text, "Message")].filter((part) => part !== undefined).join(" ");
    if (status === 404 && code !== "NoSuchBucket") throw new BucketError("missing", said);
    const later = status >= 500 || status === 429 || status === 408 || code === "RequestTimeout";
    throw new BucketError(later ? "away" : "refused", said);
  }
}

/** Reads an answer to its end, also so that its connection can be used again. @throws BucketError for one without measure */
async function textOf({ body }: Response, moved: () => void): Promise<string> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of body ?? []) {
    moved();
    bytes += part.length;
    if (bytes > MOST_TEXT) throw new BucketError("refused", `its answer has more than ${MOST_TEXT} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts).toString();
}

/** NaN where nothing is said. */
const numberOf = (text: string | null | undefined): number => (text ? Number(text) : Number.NaN);

/** The file is opened when it is first read, which a connection that is refused never does. */
async function* contentsOf(path: string, moved: () => void): AsyncGenerator<Uint8Array> {
  for await (const chunk of createReadStream(path, { highWaterMark: CHUNK })) {
    moved();
    yield chunk as Uint8Array;
  }
}

/** Whatever else fails is the network. `fetch` says why in its cause. */
function failureOf(error: unknown): BucketError {
  if (error instanceof BucketError) return error;
  const cause = error instanceof Error && error.cause !== undefined ? error.cause : error;
  const reasons = cause instanceof AggregateError ? cause.errors.map(reasonOf) : [reasonOf(cause)];
  return new BucketError("away", [...new Set(reasons)].join(", "), { cause: error });
}

/** @throws BucketError for what is no list of objects */
function objectsOf(text: string): ObjectFacts[] {
  if (!text.includes("<ListBucketResult")) throw new BucketError("refused", "its answer is no list of objects");
  const [, ...entries] = text.split("<Contents>");
  return entries.map((entry) => objectOf(entry.split("</Contents>", 1)[0]!));
}

function objectOf(entry: string): ObjectFacts {
  const [key, bytes] = [elementOf(entry, "Key"), numberOf(elementOf(entry, "Size"))];
  const modified = Date.parse(elementOf(entry, "LastModified") ?? "");
  if (key !== undefined && Number.isSafeInteger(bytes) && bytes >= 0 && !Number.isNaN(modified))
    return { key: unescaped(key), bytes, modified };
  throw new BucketError("refused", "its list of objects lacks a key, a size or a time");
}

/** What escapes nothing is as somebody else has named it. */
function unescaped(key: string): string {
  try {
    return decodeURIComponent(key.replaceAll("+", " "));
  } catch {
    return key;
  }
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };

/** Text of the first element of this name; S3's answers have no attributes or nested ones of a name. */
function elementOf(xml: string, name: string): string | undefined {
  const text = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1];
  return text?.replace(/&(lt|gt|quot|apos|amp);/g, (_, entity: string) => ENTITIES[entity]!);
}
