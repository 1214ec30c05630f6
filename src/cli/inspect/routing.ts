/** @file What an adapter's routers do with rows of a file: the diagnostics that training writes for dev rows. */
import { InputError } from "../../base/index.ts";
import { loadRows, type RoutingMetrics, RoutingTally, renderPrompt, templateOf } from "../../training/index.ts";
import { InterruptError, onInterrupt } from "../interrupt.ts";
import { open } from "../open.ts";
import { startProgress } from "../progress.ts";
import { paint, print, table } from "../terminal.ts";

export interface RoutingRequest {
  readonly model: string;
  readonly adapter: string;
  readonly data: string;
  /** As for training: a name, or a Jinja file. */
  readonly template: string;
  readonly limit?: number | undefined;
}

/** Routes the rows' prompts. Throws `InputError` for an adapter that does not route, and for unusable rows. */
export async function routingOf({ model, adapter: directory, data, template, limit }: RoutingRequest) {
  const rows = (await loadRows(data)).slice(0, limit);
  using opened = await open({ model, adapter: directory });
  const { backbone, engine } = opened;
  const adapter = opened.adapter!;
  const experts = adapter.method.properties.routed
    ? adapter.method.routing?.(adapter.config).experts.map(String)
    : undefined;
  if (!experts) throw new InputError("FLAG_INVALID", "--data", `${adapter.method.name} does not route prompts`);
  const prompts = rows.map((row) => renderPrompt(row, backbone.tokenizer, { template: templateOf(template) }));
  using interrupt = onInterrupt();
  using progress = startProgress("routing", rows.length);
  const results = await engine.generate(
    prompts.map((prompt) => ({ prompt, adapter, options: { maxNewTokens: 1 }, signal: interrupt.signal })),
    (done) => progress.update(done),
  );
  if (interrupt.signal.aborted) throw new InterruptError("interrupted");
  const tally = new RoutingTally(experts);
  for (const [i, { route }] of results.entries()) {
    const gates = route!.experts.flatMap((chosen) => experts.map((name) => Number(chosen.includes(name))));
    tally.add(rows[i]!.answer ?? data, gates, route!.probabilities.flat());
  }
  return tally.metrics()!;
}

export function printRouting(routing: RoutingMetrics, data: string): void {
  const { rows, experts, routes, label_entropy } = routing;
  print(`\n${paint("bold", "routing")} of ${rows} rows of ${data}: ${routes} distinct routes`);
  print(
    "shares of the experts by layer; entropy of the probabilities and what a layer's experts tell of the label, bits",
  );
  const share = (value: number) => `${(100 * value).toFixed(0)} %`;
  const head = ["layer", ...experts.map((name) => name.replace(/_proj$/, "")), "entropy", "sets", "told", "by chance"];
  const lines = routing.expert_shares.map((shares, layer) => [
    String(layer),
    ...shares.map(share),
    routing.entropy[layer]!.toFixed(3),
    String(routing.layer_routes[layer]),
    routing.mutual_information[layer]!.toFixed(3),
    routing.mutual_information_by_chance[layer]!.toFixed(3),
  ]);
  print(table(head, lines));
  const [told, chance] = [routing.route_mutual_information, routing.route_mutual_information_by_chance];
  print(
    `the whole route tells ${told.toFixed(3)} of the labels' ${label_entropy.toFixed(3)} bits, ${chance.toFixed(3)} by chance`,
  );
}
