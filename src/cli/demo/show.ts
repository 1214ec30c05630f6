/** @file The demo's findings as text. */
import { mean } from "../../base/index.ts";
import type { Accuracy } from "../../evaluation/index.ts";
import type { RouteReport } from "../../generation/index.ts";
import type { RoutingMetrics } from "../../training/index.ts";
import { drawRoutes } from "../routes.ts";
import { duration, grouped, paint, percent, table } from "../terminal.ts";
import { METHODS, type MethodName, type Tenant, TITLES } from "./plan.ts";
import type { Speed, Trained } from "./work.ts";

export interface TenantFacts {
  readonly tenant: Tenant;
  readonly question: string;
  readonly trainRows: number;
  readonly testRows: number;
  readonly answers: number;
}

export function heading(number: number, text: string): string {
  return `\n${paint(["bold", "cyan"], String(number))} ${paint("bold", text)}`;
}

export function tenantTable(tenants: readonly TenantFacts[]): string {
  const rows = tenants.map(({ tenant, question, trainRows, testRows, answers }) => [
    `${tenant.name} ${tenant.task}`,
    question,
    grouped(trainRows),
    grouped(testRows),
    grouped(answers),
  ]);
  return table(["tenant", "question", "rows to learn from", "held out", "answers"], rows);
}

export function trainedLine(tenant: Tenant, method: MethodName, trained: Trained): string {
  const { result, firstLoss, lastLoss, tokensPerSecond } = trained;
  const facts = [
    `${result.steps} steps`,
    duration(result.seconds),
    ...(tokensPerSecond ? [`${grouped(Math.round(tokensPerSecond))} tokens/s`] : []),
    ...(firstLoss && lastLoss ? [`loss ${firstLoss.toFixed(2)} → ${lastLoss.toFixed(2)}`] : []),
  ];
  return `tenant ${tenant.name}  ${TITLES[method].padEnd(6)}  ${facts.join(" · ")}`;
}

function withInterval({ value, interval: [low, high] }: Accuracy): string {
  return `${percent(value)} (${(100 * low).toFixed(0)}–${(100 * high).toFixed(0)})`;
}

export interface TenantAccuracy {
  readonly tenant: Tenant;
  readonly accuracy: Readonly<Record<MethodName | "bare", Accuracy>>;
}

export function accuracyTable(rows: readonly TenantAccuracy[]): string {
  const columns = ["bare", ...METHODS] as const;
  return table(
    ["tenant", ...columns.map((name) => TITLES[name])],
    rows.map(({ tenant, accuracy }) => [
      `${tenant.name} ${tenant.task}`,
      ...columns.map((name) => withInterval(accuracy[name])),
    ]),
  );
}

export interface Parameters {
  readonly tunable: number;
  readonly activated: number;
}

export function costTable(
  parameters: Readonly<Record<MethodName, Parameters>>,
  speeds: ReadonlyMap<string, Speed>,
): string {
  const bare = speeds.get("bare")!.decodeTokensPerSecond;
  const rows = (["bare", ...METHODS] as const).map((name) => {
    const { decodeTokensPerSecond, prefillMs } = speeds.get(name)!;
    const { tunable, activated } = name === "bare" ? { tunable: 0, activated: 0 } : parameters[name];
    const speed = [decodeTokensPerSecond.toFixed(0), percent(decodeTokensPerSecond / bare), prefillMs.toFixed(1)];
    return [TITLES[name], grouped(tunable), grouped(activated), ...speed];
  });
  return table(["", "tunable", "activated at most", "tokens/s", "of bare", "prompt ms"], rows);
}

export function routePicture(
  tenant: Tenant,
  labels: readonly string[],
  routes: readonly RouteReport[],
  experts: readonly string[],
): string {
  return drawRoutes(
    labels.map((label) => `${tenant.name}: ${label}`),
    routes.map((route) => route.experts),
    experts,
  );
}

/** What the routers did on the dev rows. */
export function routingLine(tenant: Tenant, routing: RoutingMetrics): string {
  const { rows, routes, entropy, experts, route_mutual_information, route_mutual_information_by_chance } = routing;
  const facts = [
    `${routes} routes on ${rows} dev rows`,
    `entropy of a layer ${mean(entropy).toFixed(2)} of ${Math.log2(experts.length).toFixed(2)} bits`,
    `of the answer they tell ${route_mutual_information.toFixed(2)} bits, by chance ${route_mutual_information_by_chance.toFixed(2)}`,
  ];
  return `tenant ${tenant.name}  ${facts.join(" · ")}`;
}

export interface Sample {
  readonly tenant: Tenant;
  readonly passage: string;
  readonly answer: string;
  readonly outputs: Readonly<Record<MethodName | "bare", string>>;
}

const SHOWN = 90;

export function sampleText({ tenant, passage, answer, outputs }: Sample): string {
  const short = passage.length > SHOWN ? `${passage.slice(0, SHOWN).trimEnd()} …` : passage;
  const lines = (["bare", ...METHODS] as const).map((name) => {
    const text = outputs[name].replace(/\s+/g, " ").trim().slice(0, SHOWN);
    const right = name !== "bare" && text.toLowerCase().endsWith(answer);
    return `  ${TITLES[name].padEnd(6)}  ${right ? paint("green", text) : text}`;
  });
  return [`${paint("dim", `tenant ${tenant.name}:`)} “${short}” ${paint("dim", `(${answer})`)}`, ...lines].join("\n");
}
