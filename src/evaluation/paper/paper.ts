/** @file What the paper reports (Zhang et al. 2024, arXiv 2410.18035), as data: our numbers stand beside these. */

/** Methods in the order of table 1, with the names the paper gives them. */
export const TITLES: Readonly<Record<string, string>> = {
  "parallel-adapter": "Parallel-Adapter",
  "learned-adapter": "Learned-Adapter",
  "p-tuning-v2": "P-tuning v2",
  iapt: "IAPT",
  bitfit: "BitFit",
  ia3: "(IA)³",
  ssp: "SSP",
  lora: "LoRA",
  adalora: "AdaLoRA",
  moelora: "MOELoRA",
  dora: "DoRA",
  milora: "MiLoRA",
  midora: "MiDoRA",
};

export const PAPER_METHODS: readonly string[] = Object.keys(TITLES);

export const PAPER_TASKS = ["arc_easy", "arc_challenge", "boolq", "openbookqa", "piqa", "aqua", "gsm8k"] as const;

/** Names of tasks and of sources in tables. */
export const TASK_TITLES: Readonly<Record<string, string>> = {
  arc_easy: "ARC-e",
  arc_challenge: "ARC-c",
  boolq: "BoolQ",
  openbookqa: "OBQA",
  piqa: "PIQA",
  aqua: "AQuA",
  gsm8k: "GSM8K",
  alpaca: "Alpaca",
  mt_bench: "MT-Bench",
  mmlu: "MMLU",
  bbh: "BBH",
};

export const taskTitle = (name: string): string => TASK_TITLES[name] ?? name;

interface Main {
  /** Millions of parameters. */
  readonly tunable: number;
  readonly activated: number;
  /** Accuracies in the order of `PAPER_TASKS`, then their mean. */
  readonly scores: readonly number[];
}

const main = (tunable: number, activated: number, ...scores: number[]): Main => ({ tunable, activated, scores });

/** Table 1: LLaMA-2 7B, accuracy in percent, medians of five seeds. */
export const TABLE1: Readonly<Record<string, Main>> = {
  "parallel-adapter": main(83.9, 83.9, 67.1, 54.2, 65.2, 76.3, 69.8, 15.6, 26.4, 53.5),
  "learned-adapter": main(81.8, 81.8, 69.3, 54.4, 64.9, 78.4, 75.6, 18.3, 28.9, 55.7),
  "p-tuning-v2": main(84.5, 84.5, 63.5, 51.3, 61.2, 76.1, 66.2, 9.63, 21.1, 49.9),
  iapt: main(83.9, 83.9, 66.3, 54.7, 67.8, 79.2, 77.3, 13.6, 25.8, 55.0),
  bitfit: main(87.0, 87.0, 65.9, 54.1, 66.4, 77.2, 76.6, 11.8, 21.7, 53.4),
  ia3: main(78.6, 78.6, 68.1, 54.6, 67.2, 78.1, 75.4, 13.2, 23.4, 54.3),
  ssp: main(80.6, 80.6, 71.6, 57.6, 69.6, 79.5, 79.7, 15.9, 31.8, 58.0),
  lora: main(80.0, 80.0, 73.4, 57.2, 68.8, 80.1, 81.4, 16.6, 31.1, 58.4),
  adalora: main(80.0, 80.0, 73.8, 57.9, 69.2, 80.4, 82.1, 17.6, 31.7, 59.0),
  moelora: main(87.3, 30.1, 76.8, 60.2, 72.0, 81.1, 82.7, 18.3, 32.3, 60.4),
  dora: main(80.0, 80.0, 76.5, 59.8, 71.7, 80.6, 82.7, 17.9, 32.6, 60.3),
  milora: main(80.9, 25.2, 77.8, 61.2, 72.8, 81.7, 83.3, 19.9, 33.9, 61.5),
  midora: main(80.9, 25.8, 77.5, 61.3, 72.9, 81.3, 83.1, 19.3, 34.1, 61.3),
};

/** Table 1's score of a task (or of `average`); undefined where it has none. */
export function table1Score(method: string, task: string): number | undefined {
  const index = task === "average" ? PAPER_TASKS.length : (PAPER_TASKS as readonly string[]).indexOf(task);
  return index < 0 ? undefined : TABLE1[method]?.scores[index];
}

/** Table 2: means over ARC, BoolQ, OBQA and PIQA, trained one by one and mixed. */
export const TABLE2: Readonly<Record<string, { readonly single: number; readonly mixed: number }>> = {
  lora: { single: 72.2, mixed: 70.2 },
  moelora: { single: 74.6, mixed: 73.9 },
  dora: { single: 74.3, mixed: 72.1 },
  milora: { single: 75.4, mixed: 75.2 },
};

type Scores = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** Table 3: after tuning on Alpaca. MT-Bench from 1 to 10, judged by GPT-4. */
export const TABLE3: Scores = {
  moelora: { mt_bench: 7.08, mmlu: 48.2, bbh: 36.8 },
  milora: { mt_bench: 7.21, mmlu: 49.7, bbh: 37.3 },
};

interface Speed {
  readonly tokensPerSecond: number;
  /** Of the GPU (an A40). */
  readonly peakMib: number;
}

/** Table 4, by method, then beams. Adapters are not merged. */
export const TABLE4: Readonly<Record<string, Readonly<Record<number, Speed>>>> = {
  dora: { 1: { tokensPerSecond: 36.5, peakMib: 13784 }, 3: { tokensPerSecond: 29.6, peakMib: 15292 } },
  moelora: { 1: { tokensPerSecond: 35.9, peakMib: 13788 }, 3: { tokensPerSecond: 28.4, peakMib: 15352 } },
  milora: { 1: { tokensPerSecond: 43.7, peakMib: 13784 }, 3: { tokensPerSecond: 33.5, peakMib: 15300 } },
};

/** Table 5: ablations, by variant. */
export const TABLE5: Scores = {
  MiLoRA: { boolq: 72.8, piqa: 83.3, mmlu: 49.7 },
  "MiLoRA-1": { boolq: 72.5, piqa: 83.1, mmlu: 49.5 },
  "MiLoRA-2": { boolq: 72.4, piqa: 82.9, mmlu: 49.6 },
  "MiLoRA-3": { boolq: 72.3, piqa: 82.8, mmlu: 49.3 },
  "MiLoRA-4": { boolq: 71.5, piqa: 82.0, mmlu: 48.7 },
  "MiLoRA-5": { boolq: 72.4, piqa: 82.9, mmlu: 49.4 },
};

export interface Rows {
  readonly train: number | null;
  readonly dev: number | null;
  readonly test: number | null;
}

const rows = (train: number | null, dev: number | null, test: number | null): Rows => ({ train, dev, test });

/** Table 6: rows of the data sets. */
export const TABLE6: Readonly<Record<string, Rows>> = {
  boolq: rows(9427, null, 3270),
  openbookqa: rows(4957, 500, 500),
  arc_easy: rows(2251, 570, 2376),
  arc_challenge: rows(1119, 299, 1172),
  piqa: rows(16000, 2000, 3000),
  aqua: rows(97467, 254, 254),
  gsm8k: rows(7473, null, 1319),
  alpaca: rows(50000, null, null),
  mt_bench: rows(null, null, 80),
  mmlu: rows(null, null, 14042),
  bbh: rows(null, null, 6511),
};

/** Table 7, by the last part of the backbone's name, then method. */
export const TABLE7: Readonly<Record<string, Scores>> = {
  "llama-2-13b": {
    moelora: { boolq: 73.5, piqa: 85.8, mmlu: 50.5 },
    milora: { boolq: 74.9, piqa: 86.6, mmlu: 51.2 },
  },
  "gemma-2b": {
    moelora: { boolq: 62.3, piqa: 79.4, mmlu: 39.8 },
    milora: { boolq: 63.9, piqa: 80.3, mmlu: 40.7 },
  },
};
