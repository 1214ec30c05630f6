/** @file Accuracy by generation on rows of a file (Hu et al. 2023): write an answer, read the label out of it, compare. */
import { createHash } from "node:crypto";
import type { Engine } from "../generation/index.ts";
import type { Adapter } from "../methods/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { renderPrompt, type Template } from "../training/index.ts";
import { chooseExtraction, type Extraction, extractAnswer, isCorrect } from "./extract.ts";
import { type Accuracy, accuracyOf } from "./interval.ts";
import { type Decoding, measure } from "./measure.ts";
import { findOverlap, type Overlap, type TrainingTexts } from "./overlap.ts";
import { type LabelledRow, questionOf } from "./rows.ts";

export interface ExactMatchOptions {
  readonly adapter?: Adapter;
  /** How rows become prompts; must be what the adapter was trained with. Default alpaca. */
  readonly template?: Template;
  /** 1 (default) is greedy; the paper's tests use 3. */
  readonly beams?: number;
  /** Longest answer in tokens. Default 32, as in LLM-Adapters. */
  readonly maxNewTokens?: number;
  /** Training rows to look for the questions in; or why there are none. */
  readonly training?: TrainingTexts | { readonly skipped: string };
  readonly signal?: AbortSignal;
  /** Called as rows are finished. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface ScoredRow {
  /** As in the data file, from 1. */
  readonly number: number;
  readonly answer: string;
  /** What the model wrote. */
  readonly output: string;
  /** The answer read out of it; null where none was found, which counts as wrong. */
  readonly extracted: string | null;
  readonly correct: boolean;
}

/** An accuracy with all that decides it, so that two numbers can be told to be comparable. */
export interface ExactMatchResult {
  readonly protocol: "hu2023";
  readonly accuracy: Accuracy;
  readonly extraction: Extraction;
  readonly template: Template;
  readonly decoding: Omit<Decoding, "stop">;
  /** sha256 of all prompts as token ids, in order. */
  readonly promptDigest: string;
  /** Digest of the adapter; null for the bare backbone. */
  readonly adapter: string | null;
  readonly overlap: Overlap | { readonly skipped: string };
  readonly rows: readonly ScoredRow[];
}

/** Lets the model answer every row and compares. Rows of a cancelled request are never scored: it throws instead. */
export async function exactMatch(
  engine: Engine,
  tokenizer: Tokenizer,
  rows: readonly LabelledRow[],
  options: ExactMatchOptions = {},
): Promise<ExactMatchResult> {
  const { adapter, template = "alpaca", beams = 1, maxNewTokens = 32, signal, onProgress } = options;
  const { training = { skipped: "no training rows are known" } } = options;
  const extraction = chooseExtraction(rows.map((row) => ({ instruction: questionOf(row), answer: row.answer })));
  const prompts = rows.map((row) => renderPrompt(row, tokenizer, { template }));
  const decoding = { beams, maxNewTokens, temperature: 0 } as const;
  const outputs = await measure(
    engine,
    prompts.map((prompt) => ({ kind: "generate", prompt, decoding: { ...decoding, stop: [] } })),
    { adapter, signal, onProgress },
  );
  const scored = rows.map((row, i): ScoredRow => {
    const made = outputs[i]!;
    const output = made.kind === "generate" ? made.text : "";
    const extracted = extractAnswer(output, extraction);
    const correct = isCorrect(extracted, row.answer, extraction);
    return { number: row.number, answer: row.answer, output, extracted: extracted ?? null, correct };
  });
  return {
    protocol: "hu2023",
    accuracy: accuracyOf(scored.filter((row) => row.correct).length, scored.length),
    extraction,
    template,
    decoding,
    promptDigest: digestOfPrompts(prompts),
    adapter: adapter?.digest ?? null,
    overlap: "skipped" in training ? training : findOverlap(rows.map(withoutLabels), training),
    rows: scored,
  };
}

/** The question without the list of labels that it may end with, which rows of one task have in common. */
function withoutLabels(row: LabelledRow): string {
  return questionOf(row).replace(/\s*Answer format:[^\n]*$/, "");
}

function digestOfPrompts(prompts: readonly (readonly number[])[]): string {
  const hash = createHash("sha256");
  for (const prompt of prompts) hash.update(`${prompt.join(",")}\n`);
  return hash.digest("hex");
}
