/** @file Every setting in which a preset is not the paper's, found by comparing them, not from a list that someone keeps. */
import { basename } from "node:path";
import { methodOf } from "../../methods/index.ts";
import { presetSettings, resolveTrainingConfig } from "../../training/index.ts";
import { PAPER_METHODS, TITLES, taskTitle } from "./paper.ts";
import { PRESET_OF } from "./presets.ts";
import type { Scope } from "./study.ts";

export interface Difference {
  readonly setting: string;
  readonly paper: string;
  readonly here: string;
  /** Methods that it is so for; empty: what has nothing to do with methods. */
  readonly methods: readonly string[];
}

const textOf = (value: unknown): string =>
  typeof value === "string" ? value : value === undefined ? "–" : JSON.stringify(value);

/** What does not change a number that is compared, or is compared by itself. */
const SILENT = new Set([
  "model",
  "output_dir",
  "seed",
  "checkpoint_every",
  "keep_checkpoints",
  "micro_batch_size",
  "data.train",
]);

function leaves(value: object, path = ""): [string, unknown][] {
  return Object.entries(value).flatMap(([key, part]): [string, unknown][] => {
    const name = path === "" ? key : `${path}.${key}`;
    if (part !== null && typeof part === "object" && !Array.isArray(part)) return leaves(part, name);
    return SILENT.has(name) ? [] : [[name, part]];
  });
}

/** All settings of a training on a task, the paper's without one, with the method's own as they are for this backbone. */
function settingsOf(scope: Scope, method: string, task?: string): Map<string, unknown> {
  const settings = task === undefined ? presetSettings("paper", method) : scope.settings(method, 0, [task]);
  const dev = task === undefined || scope.dev ? 0.05 : 0;
  const { backbone } = scope;
  const adapter = backbone ? methodOf(method).newConfig(settings.adapter, backbone) : settings.adapter;
  const config = {
    ...settings,
    adapter: adapter as Record<string, unknown>,
    model: "model",
    method,
    data: { train: "rows", dev },
  };
  return new Map(leaves(resolveTrainingConfig({ ...config, output_dir: "run" })));
}

function ofMethod(scope: Scope, method: string): Omit<Difference, "methods">[] {
  const paper = settingsOf(scope, method);
  const here = scope.tasks.map((task) => settingsOf(scope, method, task));
  return [...new Set([paper, ...here].flatMap((settings) => [...settings.keys()]))]
    .map((setting) => ({
      setting,
      paper: textOf(paper.get(setting)),
      here: [...new Set(here.map((settings) => textOf(settings.get(setting))))].join(" or "),
    }))
    .filter(({ paper, here }) => paper !== here);
}

/** What the paper's experiments have, and these have not. */
export function differencesOf(scope: Scope): Difference[] {
  const { paper } = PRESET_OF;
  const names = (list: readonly string[]) => list.map(taskTitle).join(", ") || "none";
  const general: [string, string, string][] = [
    ["backbone", "LLaMA-2 7B", basename(scope.model)],
    ["machine", "one A40 GPU, 48 GB", "CPU"],
    ["seeds", String(paper.seeds), String(scope.seeds)],
    ["beams", String(paper.beams), String(scope.beams)],
    ["test rows", "all", scope.limit === undefined ? "all" : `the first ${scope.limit}`],
    [
      "longest answer, tokens",
      "the task's",
      scope.maxNewTokens === undefined ? "the task's" : `the task's, at most ${scope.maxNewTokens}`,
    ],
    ["tasks of table 1", names(paper.tasks), names(scope.tasks)],
    ["mix of table 2", names(paper.mix), names(scope.mix)],
    ["tuning of table 3", names(paper.instructions), names(scope.instructions)],
    [
      "measured in table 3",
      names([...paper.knowledge, "mt_bench"]),
      names([...scope.knowledge, ...(scope.judged ? ["mt_bench"] : [])]),
    ],
    ["tasks of table 5 and figures 3 to 5", names(paper.studied), names(scope.studied)],
    ["tasks of figure 2", names(paper.routed), names(scope.routed)],
    [
      "backbones of table 7",
      paper.backbones.map((name) => basename(name)).join(", "),
      scope.backbones.map((name) => basename(name)).join(", ") || "none",
    ],
    ["k of figure 3", paper.ks.join(", "), scope.ks.join(", ")],
    ["λ of figure 4", paper.balance.join(", "), scope.balance.join(", ")],
    ["ranks of figure 5", paper.ranks.join(", "), scope.ranks.join(", ")],
  ];
  const found: Difference[] = general
    .filter(([, theirs, ours]) => theirs !== ours && !(ours === "llama-2-7b" && theirs === "LLaMA-2 7B"))
    .map(([setting, theirs, here]) => ({ setting, paper: theirs, here, methods: [] }));
  const byText = new Map<string, { difference: Omit<Difference, "methods">; methods: string[] }>();
  for (const method of PAPER_METHODS.filter((name) => scope.methods.includes(name))) {
    for (const difference of ofMethod(scope, method)) {
      const key = JSON.stringify(difference);
      const entry = byText.get(key) ?? { difference, methods: [] };
      entry.methods.push(TITLES[method]!);
      byText.set(key, entry);
    }
  }
  return [...found, ...[...byText.values()].map(({ difference, methods }) => ({ ...difference, methods }))];
}
