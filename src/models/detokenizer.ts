/** @file Token ids back to text, one at a time: exact bytes per token, decoded as a stream, so no character is split. */
import { z } from "zod";
import { InputError } from "../base/index.ts";
import { BYTE_OF_CHARACTER } from "./tokenizer/bytes.ts";

const decoderSchema: z.ZodType<DecoderJson> = z.lazy(() =>
  z.looseObject({
    type: z.string(),
    pattern: z.looseObject({ String: z.string().optional() }).optional(),
    content: z.string().optional(),
    start: z.number().int().min(0).optional(),
    stop: z.number().int().min(0).optional(),
    replacement: z.string().optional(),
    prepend_scheme: z.string().optional(),
    decoders: z.array(decoderSchema).optional(),
  }),
);

interface DecoderJson {
  type: string;
  pattern?: { String?: string | undefined } | undefined;
  content?: string | undefined;
  start?: number | undefined;
  stop?: number | undefined;
  replacement?: string | undefined;
  prepend_scheme?: string | undefined;
  decoders?: DecoderJson[] | undefined;
}

const encoder = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** What a decoder section of tokenizer.json does, seen as: the bytes of each token, and spaces cut from the front. */
interface Rules {
  byteLevel: boolean;
  byteFallback: boolean;
  replacements: [string, string][];
  /** Drop this character where it begins the first token (Metaspace). */
  dropFirst: string | undefined;
  /** Cut up to `count` of `content` from the front of the whole text (Strip after Fuse). */
  strip: { content: string; count: number } | undefined;
}

function rulesOf(json: unknown, where: string): Rules {
  const rules: Rules = {
    byteLevel: false,
    byteFallback: false,
    replacements: [],
    dropFirst: undefined,
    strip: undefined,
  };
  const parsed = decoderSchema.safeParse(json);
  const unsupported = (what: string): never => {
    throw new InputError("TOKENIZER_UNSUPPORTED", where, `decoder: ${what} is not supported`);
  };
  if (!parsed.success) return unsupported(json === null ? "a tokenizer without a decoder" : "this form");
  const steps = parsed.data.type === "Sequence" ? (parsed.data.decoders ?? []) : [parsed.data];
  let fused = false;
  for (const step of steps) {
    if (fused && step.type !== "Strip") unsupported(`${step.type} after Fuse`);
    switch (step.type) {
      case "ByteLevel":
        rules.byteLevel = true;
        break;
      case "ByteFallback":
        rules.byteFallback = true;
        break;
      case "Replace":
        if (step.pattern?.String === undefined) unsupported("Replace with a regular expression");
        else rules.replacements.push([step.pattern.String, step.content ?? ""]);
        break;
      case "Metaspace": {
        const mark = step.replacement ?? "▁";
        if ((step.prepend_scheme ?? "always") !== "never") rules.dropFirst = mark;
        rules.replacements.push([mark, " "]);
        break;
      }
      case "Fuse":
        fused = true;
        break;
      case "Strip":
        if (!fused || (step.stop ?? 0) > 0) unsupported("Strip other than at the start of the fused text");
        rules.strip = { content: step.content ?? " ", count: step.start ?? 0 };
        break;
      default:
        unsupported(step.type);
    }
  }
  return rules;
}

/**
 * Tokens of byte fallback in a row: all of them are characters, or each is U+FFFD. So what they are is certain only
 * after the last of them.
 */
function decodeRun(bytes: Uint8Array): string {
  try {
    return strict.decode(bytes);
  } catch {
    return "\ufffd".repeat(bytes.length);
  }
}

/**
 * The decoder of a tokenizer.json (byte-level BPE, or SentencePiece-like with byte fallback).
 *
 * Invalid UTF-8, which a model may well sample, becomes U+FFFD: in byte-level BPE one for each beginning of a
 * character, as in the WHATWG decoder; in a run of byte-fallback tokens one for each byte.
 */
export class Detokenizer {
  readonly #rules: Rules;
  readonly #tokenOf: (id: number) => string | undefined;
  readonly #special: ReadonlySet<number>;
  readonly #bytes = new Map<number, Uint8Array>();

  constructor(
    decoder: unknown,
    tokenOf: (id: number) => string | undefined,
    special: ReadonlySet<number>,
    where: string,
  ) {
    this.#rules = rulesOf(decoder, where);
    this.#tokenOf = tokenOf;
    this.#special = special;
  }

  /** Bytes of a token; none for ids outside the vocabulary (models may have more rows than there are tokens). */
  #bytesOf(id: number, first: boolean): Uint8Array {
    const cached = first && this.#rules.dropFirst ? undefined : this.#bytes.get(id);
    if (cached) return cached;
    let token = this.#tokenOf(id) ?? "";
    if (first && this.#rules.dropFirst) token = token.replaceAll(this.#rules.dropFirst, "");
    const bytes = this.#convert(token);
    if (!first) this.#bytes.set(id, bytes);
    return bytes;
  }

  #convert(token: string): Uint8Array {
    let text = token;
    for (const [from, to] of this.#rules.replacements) text = text.replaceAll(from, to);
    if (this.#rules.byteLevel) {
      const bytes = [...text].map((character) => BYTE_OF_CHARACTER.get(character));
      // An added token may hold characters the table does not know; it stands for itself then.
      if (!bytes.includes(undefined)) return Uint8Array.from(bytes as number[]);
    }
    return encoder.encode(text);
  }

  /** Bytes of a token inside a text; none for ids outside the vocabulary. */
  bytes(id: number): Uint8Array {
    const byte = this.#byteOf(id);
    return byte === undefined ? this.#bytesOf(id, false) : Uint8Array.of(byte);
  }

  /** The byte that a token of byte fallback stands for. */
  #byteOf(id: number): number | undefined {
    if (!this.#rules.byteFallback) return undefined;
    const token = this.#tokenOf(id) ?? "";
    return /^<0x[0-9A-Fa-f]{2}>$/.test(token) ? Number.parseInt(token.slice(3, 5), 16) : undefined;
  }

  /**
   * Starts a text. `push` gives the characters that the token completes, perhaps none; `end` what is left.
   * @param options.skipSpecialTokens leave out special tokens (default true)
   * @param options.continuation the text goes on after other text: SentencePiece-like tokenizers then keep the space
   *   they cut from the front of a text of its own
   */
  stream(options: DecodeStreamOptions = {}): TokenStream {
    const { skipSpecialTokens = true, continuation = false } = options;
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const { strip } = this.#rules;
    let toStrip = continuation || !strip ? 0 : strip.count;
    let first = !continuation;
    const emit = (given: string): string => {
      let text = given;
      while (toStrip > 0 && text !== "") {
        if (strip && text.startsWith(strip.content)) {
          text = text.slice(strip.content.length);
          toStrip--;
        } else toStrip = 0;
      }
      return text;
    };
    const run: number[] = [];
    const endRun = (): string => {
      const text = run.length ? decodeRun(Uint8Array.from(run)) : "";
      run.length = 0;
      return text;
    };
    return {
      push: (id) => {
        if (skipSpecialTokens && this.#special.has(id)) return "";
        const byte = this.#byteOf(id);
        if (byte !== undefined) {
          run.push(byte);
          first = false;
          return "";
        }
        const token = this.#tokenOf(id);
        if (token === undefined) return "";
        const bytes = this.#bytesOf(id, first);
        first = false;
        return emit(endRun() + decoder.decode(bytes, { stream: true }));
      },
      end: () => emit(endRun() + decoder.decode()),
    };
  }

  decode(ids: Iterable<number>, options: DecodeStreamOptions = {}): string {
    const stream = this.stream(options);
    const parts: string[] = [];
    for (const id of ids) parts.push(stream.push(id));
    parts.push(stream.end());
    return parts.join("");
  }
}

export interface DecodeStreamOptions {
  readonly skipSpecialTokens?: boolean;
  readonly continuation?: boolean;
}

export interface TokenStream {
  /** The text that this token completes; empty while a character is still missing bytes. */
  push(id: number): string;
  /** What is left: U+FFFD where the last character never became whole. The stream is used up. */
  end(): string;
}
