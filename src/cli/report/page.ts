/** @file report.html: one page without scripts and without requests, from what a run has written. */
import { mean, sum } from "../../base/index.ts";
import type { EvaluationMetrics, StepMetrics } from "../../training/index.ts";
import { grouped } from "../terminal.ts";
import type { RunFacts } from "./read.ts";
import { style } from "./style.ts";
import { escapeHtml, heatMap, lineChart, numberText, type Point, type Series } from "./svg.ts";

/** Rectangles of all heat maps together, at most: 32 layers of 7 experts get 44 columns. */
const MOST_CELLS = 10_000;

const points = <T extends { step: number }>(lines: readonly T[], y: (line: T) => number): Point[] =>
  lines.map((line) => [line.step, y(line)] as const);

export function page(run: RunFacts): string {
  const title = `${run.name}: ${text(run.config.method)} on ${text(run.config.model).replace(/^.*\//, "")}`;
  const body = [
    `<header><h1>${escapeHtml(title)}</h1>${cards(run)}</header>`,
    section("Training", trainingCharts(run)),
    section("Routing", routing(run)),
    section(
      "Learned activations of the best adapter (dashed: GELU)",
      run.curves.length === 0 ? "" : `<div class="small">${run.curves.map(curve).join("")}</div>`,
    ),
    section("Config", `<pre>${escapeHtml(JSON.stringify(run.config, null, 2))}</pre>`),
    section("Machine and versions", run.environment ? definitions(run.environment) : ""),
  ];
  const policy = "default-src 'none'; style-src 'unsafe-inline'";
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${escapeHtml(title)}</title><style>${style}</style></head>
<body>${body.join("\n")}</body></html>
`;
}

const text = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value ?? ""));

/** Nothing where there is nothing to show. */
function section(title: string, content: string): string {
  return content === "" ? "" : `<section><h2>${escapeHtml(title)}</h2>${content}</section>`;
}

function definitions(entries: Readonly<Record<string, unknown>>): string {
  const rows = Object.entries(entries).map(
    ([key, value]) => `<dt>${escapeHtml(key.replaceAll("_", " "))}</dt><dd>${escapeHtml(text(value))}</dd>`,
  );
  return `<dl>${rows.join("")}</dl>`;
}

function cards({ steps, evaluations }: RunFacts): string {
  const best = evaluations.findLast((evaluation) => evaluation.best);
  const last = steps.at(-1);
  const seconds = sum(steps.map((step) => step.seconds));
  const tokens = sum(steps.map((step) => step.tokens));
  const facts: [string, string][] = [
    ["steps", last ? grouped(last.step) : "0"],
    ["epochs", last ? numberText(last.epoch) : "0"],
    ["best dev perplexity", best ? `${numberText(best.dev_perplexity)} at step ${grouped(best.step)}` : "–"],
    ["last training loss", last ? numberText(last.lm_loss) : "–"],
    ["tokens", grouped(tokens)],
    ["tokens/s", seconds > 0 ? grouped(Math.round(tokens / seconds)) : "–"],
    ["time of the steps", `${numberText(seconds)} s`],
  ];
  return `<ul class="cards">${facts.map(([name, value]) => `<li><b>${escapeHtml(value)}</b>${name}</li>`).join("")}</ul>`;
}

function trainingCharts({ steps, evaluations, config }: RunFacts): string {
  const x = "step";
  const learned = steps.filter((step) => step.activation);
  const dev: Series = { label: "dev rows", colour: 2, dots: true, points: points(evaluations, (e) => e.dev_loss) };
  const loss: Series = { label: "training rows", colour: 1, points: points(steps, (step) => step.lm_loss) };
  const one = (y: (step: StepMetrics) => number): Series[] => [{ label: "", colour: 1, points: points(steps, y) }];
  const clip = typeof config.max_grad_norm === "number" ? config.max_grad_norm : 0;
  const norm = one((step) => step.grad_norm);
  norm[0] = { ...norm[0]!, label: "before clipping" };
  if (clip > 0 && steps.length) {
    const ends = [steps[0]!.step, steps.at(-1)!.step];
    norm.push({ label: "clipped to", colour: 3, dashed: true, points: ends.map((step) => [step, clip] as const) });
  }
  const charts = [
    lineChart({ title: "Loss, nats a token", x, series: evaluations.length ? [loss, dev] : [loss] }),
    ...(evaluations.length
      ? [
          lineChart({
            title: "Dev perplexity",
            x,
            series: [{ label: "", colour: 2, dots: true, points: points(evaluations, (e) => e.dev_perplexity) }],
          }),
        ]
      : []),
    lineChart({ title: "Learning rate", x, series: one((step) => step.lr) }),
    ...(learned.length
      ? [
          lineChart({
            title: "Learning rate of the activations",
            x,
            series: [{ label: "", colour: 4, points: points(learned, (step) => step.activation!.lr) }],
          }),
        ]
      : []),
    lineChart({ title: "Norm of the gradients", x, log: true, series: norm }),
    lineChart({ title: "Tokens a second", x, series: one((step) => step.tokens_per_second) }),
    ...[...new Set(steps.flatMap(({ auxiliary }) => Object.keys(auxiliary)))].map((name) =>
      lineChart({
        title: `Loss of the method: ${name.replaceAll("_", " ")} (weighted)`,
        x,
        series: one((step) => step.auxiliary[name] ?? Number.NaN),
      }),
    ),
  ];
  return `<div class="charts">${charts.join("")}</div>`;
}

function routing({ steps, evaluations, config }: RunFacts): string {
  const routed = steps.filter((step) => step.expert_shares?.length);
  const diagnosed = evaluations.filter((evaluation) => evaluation.routing);
  const parts: string[] = [];
  if (diagnosed.length) parts.push(diagnosisCharts(diagnosed), layerTable(diagnosed.at(-1)!));
  if (routed.length) {
    const note =
      "Share of each expert among the active ones, over the training steps; full colour: active for all prompts.";
    parts.push(`<p>${note}</p><div class="maps">${expertMaps(routed, config).join("")}</div>`);
  }
  return parts.join("");
}

function diagnosisCharts(evaluations: readonly EvaluationMetrics[]): string {
  const of = (y: (routing: NonNullable<EvaluationMetrics["routing"]>) => number): Point[] =>
    points(evaluations, (evaluation) => y(evaluation.routing!));
  const line = (label: string, colour: number, y: Parameters<typeof of>[0], dashed = false): Series => ({
    label,
    colour,
    dashed,
    dots: true,
    points: of(y),
  });
  const { experts, rows, label_entropy } = evaluations.at(-1)!.routing!;
  const charts = [
    lineChart({
      title: `Entropy of the routers, bits (undecided: ${numberText(Math.log2(experts.length))})`,
      x: "step",
      domain: [0, Math.log2(experts.length)],
      series: [
        line("mean of layers", 1, ({ entropy }) => mean(entropy)),
        line("lowest", 3, ({ entropy }) => Math.min(...entropy), true),
        line("highest", 2, ({ entropy }) => Math.max(...entropy), true),
      ],
    }),
    lineChart({
      title: `What routes tell of labels, bits (labels: ${numberText(label_entropy)})`,
      x: "step",
      series: [
        line("whole route", 1, (routing) => routing.route_mutual_information),
        line("by chance", 3, (routing) => routing.route_mutual_information_by_chance, true),
        line("best layer", 2, (routing) => Math.max(...routing.mutual_information)),
      ],
    }),
    lineChart({
      title: `Distinct routes of ${grouped(rows)} dev rows`,
      x: "step",
      series: [line("", 1, ({ routes }) => routes)],
    }),
  ];
  return `<div class="charts">${charts.join("")}</div>`;
}

/** Numbers of the last evaluation. */
function layerTable({ step, routing }: EvaluationMetrics): string {
  const { experts, expert_shares, entropy, layer_routes, mutual_information, mutual_information_by_chance } = routing!;
  const head = ["layer", ...experts, "entropy", "sets", "told, bits", "by chance"];
  const rows = expert_shares.map((shares, layer) => [
    String(layer),
    ...shares.map((share) => `${(100 * share).toFixed(0)} %`),
    ...[entropy[layer], layer_routes[layer], mutual_information[layer], mutual_information_by_chance[layer]].map(
      (value) => numberText(value ?? Number.NaN),
    ),
  ]);
  const cells = (tag: string, row: readonly string[]) =>
    row.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join("");
  const lines = rows.map((row) => `<tr>${cells("td", row)}</tr>`).join("");
  return `<p>Dev rows at step ${grouped(step)}:</p><div class="wide"><table><thead><tr>${cells("th", head)}</tr></thead><tbody>${lines}</tbody></table></div>`;
}

function expertMaps(steps: readonly StepMetrics[], config: Readonly<Record<string, unknown>>): string[] {
  const layers = steps[0]!.expert_shares!.length;
  const experts = steps[0]!.expert_shares![0]!.length;
  const columns = Math.max(8, Math.min(80, steps.length, Math.floor(MOST_CELLS / (layers * experts))));
  const adapter = (config.adapter ?? {}) as { target_modules?: unknown; top_k?: unknown };
  const names = Array.isArray(adapter.target_modules) && adapter.target_modules.length === experts;
  const rows = Array.from({ length: experts }, (_, i) =>
    names ? String((adapter.target_modules as unknown[])[i]).replace(/_proj$/, "") : String(i),
  );
  const active = typeof adapter.top_k === "number" ? adapter.top_k : 1;
  const groups = Array.from(
    { length: Math.min(columns, steps.length) },
    (_, c, count = Math.min(columns, steps.length)) =>
      steps.slice(Math.floor((c * steps.length) / count), Math.floor(((c + 1) * steps.length) / count)),
  );
  return Array.from({ length: layers }, (_, layer) =>
    heatMap({
      title: `layer ${layer}`,
      rows,
      columns: groups.map((group) =>
        rows.map((_, expert) => mean(group.map((step) => step.expert_shares?.[layer]?.[expert] ?? 0))),
      ),
      most: 1 / active,
      from: `step ${steps[0]!.step}`,
      to: String(steps.at(-1)!.step),
    }),
  );
}

function curve({ layer, learned, gelu, deviation }: RunFacts["curves"][number]): string {
  return lineChart({
    title: `layer ${layer}: ${deviation.toExponential(1)} from GELU`,
    x: "",
    width: 210,
    height: 150,
    domain: [-1, 3],
    series: [
      { label: "learned", colour: 1, points: learned },
      { label: "GELU", colour: 3, dashed: true, points: gelu },
    ],
  });
}
