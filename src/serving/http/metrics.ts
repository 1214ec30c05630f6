/** @file Prometheus metrics of a server, with a cap on the tenants and adapters that they tell apart. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { sum } from "../../base/index.ts";
import type { Engine, GenerationResult, Scheduler, SchedulerObserver } from "../../generation/index.ts";
import { type AdapterRegistry, qualified } from "../adapters/index.ts";

/** Label of everything beyond the cap. */
const OTHER = "other";

/** Names that get a label of their own, first come first served; whoever names things cannot fill the memory. */
class LabelCap {
  readonly #most: number;
  readonly #known = new Set<string>();

  constructor(most: number) {
    this.#most = most;
  }

  label(name: string): string {
    if (this.#known.has(name)) return name;
    if (this.#known.size >= this.#most) return OTHER;
    this.#known.add(name);
    return name;
  }
}

const FIRST_TOKEN = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const BETWEEN_TOKENS = [0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5];
const QUEUE = [0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60];
const POWERS = [1, 2, 4, 8, 16, 32, 64, 128];

export class Metrics {
  readonly registry = new Registry();
  readonly #tenants: LabelCap;
  readonly #adapters: LabelCap;
  readonly #base: string;
  readonly #by = ["tenant", "adapter"] as const;
  readonly #firstToken = this.#histogram("time_to_first_token_seconds", "From arrival to the first token", FIRST_TOKEN);
  readonly #interToken = this.#histogram("inter_token_seconds", "Between two tokens of an answer", BETWEEN_TOKENS);
  readonly #queue = this.#histogram("queue_seconds", "Waiting before the prompt is read", QUEUE);
  readonly #promptTokens = this.#counter("prompt_tokens_total", "Tokens of prompts", this.#by);
  readonly #generatedTokens = this.#counter("generated_tokens_total", "Tokens of answers", this.#by);
  readonly #requests = this.#counter("requests_total", "Prompts answered, by how they ended", [
    ...this.#by,
    "outcome",
  ] as const);
  readonly #routes = this.#counter("routed_experts_total", "Times an expert was chosen, by third of the layers", [
    "adapter",
    "layers",
    "expert",
  ] as const);
  readonly #http = this.#counter("http_requests_total", "HTTP requests by route and status", [
    "route",
    "status",
  ] as const);
  readonly #errors = this.#counter("errors_total", "Answers with an error, by its code", ["code"] as const);
  readonly #rows = this.#histogramOf("batch_rows", "Sequences in a step", POWERS);
  readonly #stepAdapters = this.#histogramOf(
    "batch_adapters",
    "Different adapters in a step, the backbone as one",
    POWERS,
  );
  readonly #stepSeconds = this.#histogramOf("step_seconds", "One step of all sequences", BETWEEN_TOKENS);

  /** @param base what clients call the backbone; the label of requests without an adapter */
  constructor(labels: number, base: string) {
    this.#tenants = new LabelCap(labels);
    this.#adapters = new LabelCap(labels);
    this.#base = base;
  }

  /** What the scheduler tells as it goes. */
  get observer(): SchedulerObserver {
    return {
      admitted: (request, ms) => this.#queue.observe(this.#labels(request), ms / 1000),
      firstToken: (request, ms) => this.#firstToken.observe(this.#labels(request), ms / 1000),
      token: (request, ms) => this.#interToken.observe(this.#labels(request), ms / 1000),
      finished: (request, outcome) => {
        const labels = this.#labels(request);
        const ended = outcome instanceof Error ? "error" : (outcome[0]?.finishReason ?? "length");
        this.#requests.inc({ ...labels, outcome: ended });
        if (outcome instanceof Error) return;
        this.#promptTokens.inc(labels, request.prompt.length);
        this.#generatedTokens.inc(labels, sum(outcome.map(({ tokens }) => tokens.length)));
        this.#route(labels.adapter, outcome[0]);
      },
      step: ({ rows, adapters, ms }) => {
        this.#rows.observe(rows);
        this.#stepAdapters.observe(adapters);
        this.#stepSeconds.observe(ms / 1000);
      },
    };
  }

  /** An HTTP request was answered. @param route its pattern, never the path as it was asked for */
  answered(route: string, status: number, code?: string): void {
    this.#http.inc({ route, status: String(status) });
    if (code !== undefined) this.#errors.inc({ code });
  }

  /** Gauges of what is now, read when the metrics are asked for. */
  watch(parts: { readonly scheduler: Scheduler; readonly engine: Engine; readonly registry: AdapterRegistry }): void {
    collectDefaultMetrics({ register: this.registry, prefix: "milora_" });
    const { scheduler, engine, registry } = parts;
    this.#gauge("requests_waiting", "Requests in the queue", () => scheduler.stats().waiting);
    this.#gauge("requests_running", "Requests under way", () => scheduler.stats().running);
    this.#gauge("running_rows", "Sequences that decode", () => scheduler.stats().rows);
    this.#gauge("running_adapters", "Different adapters under way", () => scheduler.stats().adapters);
    this.#gauge("kv_tokens", "Positions of the key-value cache in use", () => scheduler.stats().kvTokens);
    this.#gauge("sessions", "Open sessions of the engine", () => engine.sessions);
    this.#gauge("kv_bytes", "Memory of key-value caches", () => engine.kvBytes);
    this.#gauge("adapters_resident", "Adapters in memory", () => registry.stats.resident);
    this.#gauge("adapters_resident_bytes", "Memory of adapters", () => registry.stats.residentBytes);
    this.#total("adapter_loads_total", "Adapters loaded into memory", () => registry.stats.loads);
    this.#total("adapter_load_failures_total", "Adapters that could not be loaded", () => registry.stats.failures);
    this.#total("adapter_evictions_total", "Adapters evicted from memory", () => registry.stats.evictions);
    this.#total("adapter_hits_total", "Requests that found their adapter in memory", () => registry.stats.hits);
    this.#gauge("adapter_cache_bytes", "Files copied from the adapter store", () => registry.cache?.bytes ?? 0);
    this.#total("adapter_fetches_total", "Adapters fetched from the store", () => registry.cache?.fetches ?? 0);
    this.#total(
      "adapter_fetch_failures_total",
      "Adapters that could not be fetched",
      () => registry.cache?.failures ?? 0,
    );
    this.#total("prefix_cache_hits_total", "Prompts whose beginning was cached", () => engine.prefixCache?.hits ?? 0);
    this.#total("prefix_cache_misses_total", "Prompts read from the start", () => engine.prefixCache?.misses ?? 0);
    this.#total("prefix_cache_tokens_total", "Prompt tokens not read again", () => engine.prefixCache?.tokens ?? 0);
    this.#total("prefix_cache_evictions_total", "Beginnings that had to go", () => engine.prefixCache?.evictions ?? 0);
    this.#gauge("prefix_cache_bytes", "Memory of cached beginnings", () => engine.prefixCache?.bytes ?? 0);
    const cap = this.#adapters;
    new Gauge({
      name: "milora_adapter_resident",
      help: "1 for an adapter in memory, 0 for one on disk",
      labelNames: ["adapter"] as const,
      registers: [this.registry],
      async collect() {
        this.reset();
        for (const record of await registry.all()) {
          const adapter = cap.label(qualified(record));
          if (adapter !== OTHER) this.set({ adapter }, record.resident ? 1 : 0);
        }
      },
    });
  }

  #labels({ tenant, label }: { readonly tenant: string; readonly label?: string }): {
    tenant: string;
    adapter: string;
  } {
    return { tenant: this.#tenants.label(tenant), adapter: this.#adapters.label(label ?? this.#base) };
  }

  #route(adapter: string, result: GenerationResult | undefined): void {
    const experts = result?.route?.experts;
    if (!experts) return;
    const names = ["first", "middle", "last"];
    experts.forEach((chosen, layer) => {
      const layers = names[Math.floor((layer * 3) / experts.length)]!;
      for (const expert of chosen) this.#routes.inc({ adapter, layers, expert });
    });
  }

  #histogram(name: string, help: string, buckets: number[]): Histogram<"tenant" | "adapter"> {
    const labelNames = ["tenant", "adapter"] as const;
    return new Histogram({ name: `milora_${name}`, help, buckets, labelNames, registers: [this.registry] });
  }

  #histogramOf(name: string, help: string, buckets: number[]): Histogram {
    return new Histogram({ name: `milora_${name}`, help, buckets, registers: [this.registry] });
  }

  #counter<L extends string>(name: string, help: string, labelNames: readonly L[]): Counter<L> {
    return new Counter({ name: `milora_${name}`, help, labelNames, registers: [this.registry] });
  }

  #gauge(name: string, help: string, read: () => number): void {
    new Gauge({
      name: `milora_${name}`,
      help,
      registers: [this.registry],
      collect() {
        this.set(read());
      },
    });
  }

  /** A counter that is kept elsewhere. */
  #total(name: string, help: string, read: () => number): void {
    new Counter({
      name: `milora_${name}`,
      help,
      registers: [this.registry],
      collect() {
        this.reset();
        this.inc(read());
      },
    });
  }
}
