/** @file A visit to the routers of adapters: whether one may, whose time it is, and what it costs. */
import type { FastifyReply, FastifyRequest } from "fastify";
import { InputError, sum } from "../../../base/index.ts";
import { type Exploration, GenerationError } from "../../../generation/index.ts";
import { type AdapterRecord, qualified } from "../../adapters/index.ts";
import { untilGone } from "../../http/openai/call.ts";
import type { Services } from "../../http/services.ts";
import { routes } from "./routed.ts";

/** What the routers of one adapter did with the prompts. */
export interface Visited {
  readonly record: AdapterRecord;
  readonly method: string;
  readonly experts: readonly string[];
  readonly pooler: string;
  /** By prompt. */
  readonly explored: readonly Exploration[];
}

export interface VisitOptions {
  readonly attention?: boolean;
  /** Told how many prompts are done, of each adapter. */
  readonly onProgress?: (done: number, total: number) => void;
}

export class Visit {
  readonly #services: Services;
  readonly #request: FastifyRequest;
  readonly #records: readonly AdapterRecord[];
  /** The client has gone, or the server stops. */
  readonly signal: AbortSignal;

  private constructor(services: Services, request: FastifyRequest, reply: FastifyReply, records: AdapterRecord[]) {
    this.#services = services;
    this.#request = request;
    this.#records = records;
    this.signal = untilGone(services, reply);
    request.facts.adapter = records.map(qualified).join(" ");
  }

  /** @throws InputError MODEL_NOT_FOUND, NOT_ROUTED naming all that do not route */
  static async begin(
    services: Services,
    request: FastifyRequest,
    reply: FastifyReply,
    models: readonly string[],
  ): Promise<Visit> {
    const records: AdapterRecord[] = [];
    const problems: string[] = [];
    for (const model of models) {
      const record = await services.registry.resolve(request.principal, model);
      if (!record) problems.push(`"${model}" is the backbone, which has no routers`);
      else if (routes(record)) records.push(record);
      else problems.push(`"${model}" is an adapter of ${record.method}, which does not choose experts for a prompt`);
    }
    if (problems.length) throw new InputError("NOT_ROUTED", "what is to be explored", problems);
    return new Visit(services, request, reply, records);
  }

  /**
   * Has the prompts routed by one adapter after the other, in turns with everything else that the server does. Charges the
   * tenant for what was read, however it ends; each adapter stays in memory while it is used.
   *
   * @throws QUOTA_EXCEEDED, OVERLOADED, PROMPT_TOO_LONG, …; the reason of the signal when that ended it
   */
  async explore(prompts: readonly (readonly number[])[], options: VisitOptions = {}): Promise<Visited[]> {
    const { store } = this.#services;
    const { principal, facts } = this.#request;
    const lengths = prompts.map(({ length }) => length).sort((a, b) => a - b);
    using admission = await store.quotas.enter(principal, sum(lengths) * this.#records.length);
    let read = 0;
    try {
      const visited: Visited[] = [];
      for (const record of this.#records) {
        let done = 0;
        try {
          const onProgress = (finished: number, total: number): void => {
            done = finished;
            options.onProgress?.(finished, total);
          };
          visited.push(await this.#visit(record, prompts, { ...options, onProgress }));
        } finally {
          // The shortest are read first.
          const promptTokens = sum(lengths.slice(0, done));
          read += promptTokens;
          if (done > 0) {
            store.usage.charge(principal, { adapter: qualified(record), promptTokens, completionTokens: 0 });
          }
        }
      }
      return visited;
    } finally {
      admission.settle(read);
      facts.promptTokens = read;
      facts.completionTokens = 0;
    }
  }

  async #visit(
    record: AdapterRecord,
    prompts: readonly (readonly number[])[],
    { attention, onProgress }: VisitOptions,
  ): Promise<Visited> {
    const { registry, scheduler, config } = this.#services;
    const { tenant, weight } = this.#request.principal;
    const { deadlineSeconds } = config.http;
    using deadline = deadlineAfter(deadlineSeconds);
    const signal = deadline ? AbortSignal.any([this.signal, deadline.signal]) : this.signal;
    signal.throwIfAborted();
    using lease = await registry.lease(record, { signal });
    const { adapter } = lease;
    const { experts, pooler } = adapter.method.routing!(adapter.config);
    try {
      const options = { tenant, weight, signal, attention, onProgress };
      const explored = await scheduler.explore(prompts, adapter, options);
      return { record, method: adapter.method.name, experts, pooler, explored };
    } catch (error) {
      signal.throwIfAborted(); // a pass that was cancelled says only that it was
      throw error;
    }
  }
}

/** Aborts when an answer takes longer than the server gives it. */
function deadlineAfter(seconds: number | undefined): ({ readonly signal: AbortSignal } & Disposable) | undefined {
  if (seconds === undefined) return undefined;
  const late = new AbortController();
  const message = `the answer was not there after ${seconds} s, as long as this server allows; ask for less`;
  const timer = setTimeout(() => late.abort(new GenerationError("DEADLINE_EXCEEDED", message)), seconds * 1000);
  return { signal: late.signal, [Symbol.dispose]: () => clearTimeout(timer) };
}
