/** @file The tokenizer of a GGUF file, in the form of tokenizer.json and tokenizer_config.json. */
import { InputError } from "../../base/index.ts";
import { PIECE, sentencePieceJson } from "../tokenizer/sentencepiece.ts";
import type { GgufHeader } from "./header.ts";
import { portableJson } from "./sentencepiece.ts";

type Metadata = GgufHeader["metadata"];

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const LLAMA3 = (numbers: string) =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${numbers}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const TEKKEN =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|" +
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|" +
  "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** How a kind of byte-level BPE cuts a text before merging, one pattern after the other; in llama.cpp's llama-vocab.cpp. */
interface PreTokenizer {
  readonly patterns: readonly string[];
  /** A whole piece that is a token needs no merges. */
  readonly ignoreMerges?: true;
  readonly addBos?: true;
  readonly nfc?: true;
}

const gpt2: PreTokenizer = { patterns: [GPT2] };
const digits: PreTokenizer = { patterns: ["\\p{N}", GPT2] };
const llama3: PreTokenizer = { patterns: [LLAMA3("\\p{N}{1,3}")], ignoreMerges: true, addBos: true };
const qwen2: PreTokenizer = { patterns: [LLAMA3("\\p{N}")], nfc: true };

/** By `tokenizer.ggml.pre`. */
const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  "gpt-2": gpt2,
  phi2: gpt2,
  jais: gpt2,
  mpt: gpt2,
  olmo: gpt2,
  smollm: digits,
  starcoder: digits,
  refact: digits,
  "command-r": digits,
  codeshell: digits,
  exaone: digits,
  "llama-bpe": llama3,
  "llama-v3": llama3,
  llama3,
  falcon3: llama3,
  "smaug-bpe": { patterns: llama3.patterns },
  dbrx: { patterns: llama3.patterns },
  qwen2,
  "deepseek-r1-qwen": qwen2,
  megrez: { patterns: qwen2.patterns },
  stablelm2: { patterns: qwen2.patterns },
  hunyuan: { patterns: qwen2.patterns },
  tekken: { patterns: [TEKKEN], ignoreMerges: true, addBos: true },
  default: {
    patterns: [
      "[\\p{P}\\$\\+<=>\\^~\\|]+",
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)",
      "\\p{N}+",
      "[0-9][0-9][0-9]",
    ],
  },
};

interface Tokens {
  readonly tokens: readonly string[];
  readonly types: ArrayLike<number>;
  readonly metadata: Metadata;
  readonly where: string;
}

function byteLevelJson({ tokens, metadata, where }: Tokens, { patterns, ignoreMerges, nfc }: PreTokenizer) {
  const merges = metadata.get("tokenizer.ggml.merges") ?? [];
  const pairs = Array.isArray(merges) ? merges.map((merge) => String(merge).split(" ")) : [];
  if (!Array.isArray(merges) || pairs.some((pair) => pair.length !== 2)) {
    throw new InputError("TOKENIZER_INVALID", where, "tokenizer.ggml.merges holds something that is no pair of tokens");
  }
  const splits = patterns.map((Regex) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false }));
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  return {
    model: {
      type: "BPE",
      unk_token: null,
      byte_fallback: false,
      ignore_merges: ignoreMerges === true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: pairs,
    },
    normalizer: nfc ? { type: "NFC" } : null,
    pre_tokenizer: { type: "Sequence", pretokenizers: [...splits, byteLevel] },
    decoder: byteLevel,
  };
}

function sentencePieceParts({ tokens: pieces, types, metadata }: Tokens, scores: ArrayLike<number>, portable: boolean) {
  const vocabulary = {
    kind: "bpe" as const,
    pieces,
    scores,
    types,
    byteFallback: pieces.some((_, id) => types[id] === PIECE.byte),
    addDummyPrefix: metadata.get("tokenizer.ggml.add_space_prefix") !== false,
    prefixAfterSpecial: true,
  };
  return portable ? portableJson(vocabulary) : sentencePieceJson(vocabulary);
}

/** Tokens that are found by their spelling before a text is cut. */
function addedTokens({ tokens, types, metadata }: Tokens) {
  // Phi-3's end tokens take the blanks after them; the file does not say so, llama.cpp goes by the model, too.
  const rstrip = metadata.get("general.architecture") === "phi3" && metadata.get("tokenizer.ggml.model") === "llama";
  return tokens.flatMap((content, id) => {
    const type = types[id]!;
    if (type !== PIECE.control && type !== PIECE.userDefined && type !== PIECE.unknown) return [];
    const special = type !== PIECE.userDefined;
    return [
      {
        id,
        content,
        special,
        normalized: false,
        single_word: false,
        lstrip: false,
        rstrip: rstrip && content.startsWith("<|") && content !== "<|endoftext|>",
      },
    ];
  });
}

/** Whether a file has a tokenizer. */
export function hasTokenizer(metadata: Metadata): boolean {
  const model = metadata.get("tokenizer.ggml.model");
  return model !== undefined && model !== "none" && model !== "no_vocab";
}

/**
 * The content of tokenizer.json and tokenizer_config.json.
 * @param portable whether the libraries of transformers must be able to read it: a SentencePiece vocabulary is then
 *   written as the BPE that gives the same tokens, which takes a second or two
 * @throws InputError `TOKENIZER_MISSING`, `TOKENIZER_UNSUPPORTED`, `TOKENIZER_INVALID`
 */
export function tokenizerFiles(
  metadata: Metadata,
  where: string,
  portable = false,
): { tokenizerJson: object; config: object } {
  if (!hasTokenizer(metadata)) {
    throw new InputError("TOKENIZER_MISSING", where, "has no tokenizer; give token ids");
  }
  const list = metadata.get("tokenizer.ggml.tokens");
  if (!Array.isArray(list) || !list.every((token) => typeof token === "string")) {
    throw new InputError("TOKENIZER_INVALID", where, "tokenizer.ggml.tokens is not a list of texts");
  }
  const tokens = list as string[];
  const numbers = (key: string): ArrayLike<number> => {
    const values = metadata.get(key);
    if (values === undefined) return new Int32Array(tokens.length).fill(PIECE.normal);
    if ((values instanceof Int32Array || values instanceof Float32Array) && values.length === tokens.length)
      return values;
    throw new InputError("TOKENIZER_INVALID", where, `${key} has not one number for each of ${tokens.length} tokens`);
  };
  const given: Tokens = { tokens, types: numbers("tokenizer.ggml.token_type"), metadata, where };
  const kind = metadata.get("tokenizer.ggml.model");
  const pre = metadata.get("tokenizer.ggml.pre") ?? "default";
  const sentencePiece = kind === "llama";
  const known = typeof pre === "string" && Object.hasOwn(PRE_TOKENIZERS, pre) ? PRE_TOKENIZERS[pre] : undefined;
  if (!sentencePiece && (kind !== "gpt2" || known === undefined)) {
    const problem =
      kind === "gpt2"
        ? `tokenizer.ggml.pre ${JSON.stringify(pre)} is not one of ${Object.keys(PRE_TOKENIZERS).join(", ")}`
        : `tokenizer.ggml.model ${JSON.stringify(kind)} is not one of llama, gpt2`;
    throw new InputError("TOKENIZER_UNSUPPORTED", where, problem);
  }
  const parts = sentencePiece
    ? sentencePieceParts(given, numbers("tokenizer.ggml.scores"), portable)
    : byteLevelJson(given, known!);
  const tokenOf = (name: string): { id: number; content: string } | undefined => {
    const id = metadata.get(`tokenizer.ggml.${name}_token_id`);
    const content = typeof id === "number" ? tokens[id] : undefined;
    return content === undefined ? undefined : { id: id as number, content };
  };
  const [bos, eos, pad, unknown] = ["bos", "eos", "padding", "unknown"].map(tokenOf);
  const addBos = metadata.get("tokenizer.ggml.add_bos_token") ?? (sentencePiece || known?.addBos === true);
  const front = addBos === true && bos ? [bos] : [];
  const back = metadata.get("tokenizer.ggml.add_eos_token") === true && eos ? [eos] : [];
  const special = ({ content }: { content: string }) => ({ SpecialToken: { id: content, type_id: 0 } });
  const frame = [...front, ...back];
  return {
    tokenizerJson: {
      version: "1.0",
      ...parts,
      added_tokens: addedTokens(given),
      post_processor:
        frame.length === 0
          ? null
          : {
              type: "TemplateProcessing",
              single: [...front.map(special), { Sequence: { id: "A", type_id: 0 } }, ...back.map(special)],
              pair: [],
              special_tokens: Object.fromEntries(
                frame.map(({ id, content }) => [content, { id: content, ids: [id], tokens: [content] }]),
              ),
            },
    },
    config: {
      ...(bos ? { bos_token: bos.content } : {}),
      ...(eos ? { eos_token: eos.content } : {}),
      ...(pad ? { pad_token: pad.content } : {}),
      ...(unknown ? { unk_token: unknown.content } : {}),
      chat_template: metadata.get("tokenizer.chat_template") ?? null,
    },
  };
}
