/** @file What a server is started on: a prepared backbone with random weights, and data directories with random adapters installed. */
import { linkSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CONFIG_FILE, WEIGHTS_FILE } from "../../src/methods/index.ts";
import { PREPARED, prepareModel, readBackboneConfig, readPreparedInfo } from "../../src/models/index.ts";
// Adapters are put where an installation puts them: a thousand uploads are not what is measured.
import { digestOfFiles, rememberUnchanged } from "../../src/serving/adapters/files.ts";
import { openStore } from "../../src/serving/index.ts";
import { randomAdapter } from "./adapters.ts";
import { cacheDirectory } from "./cache.ts";
import { writeRandomCheckpoint } from "./checkpoint.ts";
import { shapeOf } from "./shapes.ts";

/** Ids below this are special tokens and bytes. */
export const FIRST_WORD = 259;

/** A directory of an int4 backbone of this shape with random weights, and a tokenizer; made at first use. */
export async function preparedModel(shape: string): Promise<string> {
  const output = join(cacheDirectory, `${shape}-int4`);
  if (isPrepared(output)) return output;
  rmSync(output, { recursive: true, force: true });
  mkdirSync(cacheDirectory, { recursive: true });
  process.stderr.write(`writing ${shape}-int4 (once)\n`);
  const checkpoint = mkdtempSync(join(tmpdir(), "milora-serve-"));
  try {
    writeRandomCheckpoint(checkpoint, shapeOf(shape));
    writeTokenizer(checkpoint, shapeOf(shape).vocabSize);
    await prepareModel(checkpoint, { weights: "int4", output });
  } finally {
    rmSync(checkpoint, { recursive: true, force: true });
  }
  return output;
}

/** Whether there is a model in the form that is prepared now. */
function isPrepared(directory: string): boolean {
  try {
    readPreparedInfo(join(directory, PREPARED));
    return true;
  } catch {
    return false;
  }
}

/** Bytes and made-up words, so that every token has a text and the server sends an event for it. */
function writeTokenizer(directory: string, vocabSize: number): void {
  const special = ["<unk>", "<s>", "</s>"];
  const words = Array.from({ length: vocabSize - FIRST_WORD }, (_, i) => `\u0120w${i + FIRST_WORD}`);
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const tokenizer = {
    version: "1.0",
    added_tokens: special.map((content, id) => {
      return { id, content, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false };
    }),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: "BPE",
      vocab: Object.fromEntries([...special, ...byteCharacters(), ...words].map((token, id) => [token, id])),
      merges: [],
    },
  };
  writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(tokenizer));
  const chat_template =
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}";
  const config = { tokenizer_class: "PreTrainedTokenizerFast", bos_token: "<s>", eos_token: "</s>", chat_template };
  writeFileSync(join(directory, "tokenizer_config.json"), JSON.stringify(config));
}

/** How byte-level vocabularies write the 256 bytes: printable ones as they are, the others from U+0100 on. */
function byteCharacters(): string[] {
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

export interface InstalledKind {
  /** Names are `<prefix>0`, `<prefix>1`, … */
  readonly prefix: string;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly count: number;
  /** Different files of tensors; further adapters are links to them, and differ in their configs' white space only. */
  readonly distinct: number;
}

/** Fills a new data directory with random adapters for everybody, as `milora adapters install` would. */
export async function installAdapters(data: string, model: string, kinds: readonly InstalledKind[]): Promise<void> {
  const backbone = readBackboneConfig(model);
  const root = join(data, "adapters");
  const draft = join(root, "draft");
  mkdirSync(root, { recursive: true });
  await using store = await openStore({ directory: data });
  const directories: string[] = [];
  for (const { prefix, method, options, count, distinct } of kinds) {
    const originals: string[] = [];
    for (let i = 0; i < count; i++) {
      const original = originals[i % distinct];
      if (original === undefined) {
        using adapter = randomAdapter(method, options, backbone, i);
        await adapter.save(draft);
      } else {
        mkdirSync(draft);
        linkSync(join(original, WEIGHTS_FILE), join(draft, WEIGHTS_FILE));
        const config = readFileSync(join(original, CONFIG_FILE), "utf8");
        writeFileSync(join(draft, CONFIG_FILE), config + " ".repeat(i));
      }
      const digest = await digestOfFiles(draft);
      const directory = join(root, digest);
      if (original === undefined) originals.push(directory);
      const { size: bytes } = statSync(join(draft, WEIGHTS_FILE));
      renameSync(draft, directory);
      directories.push(directory);
      const rank = typeof options.r === "number" ? options.r : null;
      await store.adapters.put({ owner: null, name: `${prefix}${i}`, digest, method, rank, bytes });
    }
  }
  await sleep(50); // a link is a change of its file; it must not look like one of just now
  for (const directory of directories) await rememberUnchanged(directory);
}
