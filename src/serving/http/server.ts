/** @file A server from its settings: starts all parts, and ends them so that no answer is cut off. */
import { setTimeout as sleep } from "node:timers/promises";
import type { FastifyInstance } from "fastify";
import { InputError } from "../../base/index.ts";
import { Engine, Scheduler } from "../../generation/index.ts";
import { Backbone } from "../../models/index.ts";
import { configureRuntime, requireDevice } from "../../runtime/index.ts";
import { AdapterRegistry, type AdapterStorage, adapterStorage } from "../adapters/index.ts";
import { Owned } from "../owned.ts";
import { openStore, type Principal, type Store, type StoreLocation } from "../store/index.ts";
import { lockDirectory } from "../store/lock.ts";
import { checkFolders } from "../studio/folders.ts";
import { Sessions } from "../studio/sessions.ts";
import { createApp, draining } from "./app.ts";
import { isLoopback, modelNameOf, type ServerConfig } from "./config.ts";
import { Faults } from "./faults.ts";
import { both, History } from "./history.ts";
import { createLog, type Logger } from "./logs.ts";
import { Metrics } from "./metrics.ts";
import { chatFormatOf } from "./openai/chat-format.ts";
import type { ServerState, Services } from "./services.ts";

export interface ServerOptions {
  readonly log?: Logger;
  /** Keeps tenants, keys and usage in memory, for tests; adapters still lie in `data`. */
  readonly memory?: boolean;
}

export class Server implements AsyncDisposable {
  readonly services: Services;
  readonly app: FastifyInstance;
  /** Where it listens, `http://HOST:PORT`. */
  readonly url: string;
  readonly #owned: AsyncDisposable;
  #stopped: Promise<void> | undefined;

  private constructor(services: Services, app: FastifyInstance, url: string, owned: AsyncDisposable) {
    this.services = services;
    this.app = app;
    this.url = url;
    this.#owned = owned;
  }

  /**
   * Starts to listen; resolves when requests can be answered.
   * @throws InputError for what the settings name and is not there, SERVER_ADDRESS when it cannot listen there;
   *   FLAG_INVALID for an address that others reach, and no keys
   */
  static async start(config: ServerConfig, options: ServerOptions = {}): Promise<Server> {
    const log = options.log ?? createLog(config);
    const owned = new Owned();
    // While nothing else does, node would wait for what V8 compiles beside: a quarter of a second for the database's code.
    const awake = setInterval(() => {}, 1000);
    try {
      const chat = chatFormatOf(config.chatTemplate);
      checkFolders(config.runs);
      if (config.threads !== undefined) configureRuntime({ threads: config.threads });
      requireDevice(config.device);
      const onError = (err: unknown): void => log.error({ err }, "usage could not be written; it is kept");
      const [backbone, store] = await owned.both(
        Backbone.load(config.model, config.weights ? { weights: config.weights } : {}),
        openStore(locationOf(config, options), { onError }),
      );
      const { open, guarded } = await whoIsServed(config, store);
      const base = config.name ?? modelNameOf(config.model);
      const metrics = new Metrics(config.metricLabels, base);
      const engine = owned.add(
        Engine.create(backbone, {
          device: config.device,
          maxBatch: config.limits.maxBatch,
          adapterPrecision: config.adapterPrecision,
          kvPrecision: config.kvPrecision,
          ...(config.prefixCacheBytes > 0 && { prefixCache: { bytes: config.prefixCacheBytes } }),
          ...(config.context !== undefined && { context: config.context }),
        }),
      );
      const storage = await storageOf(config, store, log, owned);
      const registry = owned.add(
        await AdapterRegistry.open({
          ...{ storage, adapters: store.adapters, backbone: backbone.config, bases: [base] },
          backboneDigest: backbone.digest,
          ...{ engine, limits: config.residency, preload: config.preload, log },
        }),
      );
      const follow = (): void => {
        registry.follow().catch((err: unknown) => log.warn({ err }, "changes of adapters could not be followed"));
      };
      owned.add(store.watch(follow));
      const history = owned.add(new History());
      const scheduler = owned.add(new Scheduler(engine, config.limits, both(metrics.observer, history.observer)));
      history.watch(scheduler);
      for (const [name, directory] of Object.entries(config.adapters)) {
        await registry.install({ directory }, { owner: null, name });
      }
      metrics.watch({ scheduler, engine, registry });
      const state: ServerState = { draining: false, leaving: false, inFlight: 0, stop: new AbortController() };
      const startedAt = Math.floor(Date.now() / 1000);
      const sessions = new Sessions(await store.secret("studio"));
      const services: Services = {
        ...{ config, engine, scheduler, registry, store, metrics, log, base, chat, startedAt, open, guarded, state },
        ...{ history, faults: new Faults(), sessions },
      };
      const app = await createApp(services);
      owned.add({ [Symbol.asyncDispose]: () => app.close() });
      return new Server(services, app, await listen(app, config), owned);
    } catch (error) {
      await owned[Symbol.asyncDispose]();
      throw error;
    } finally {
      clearInterval(awake);
    }
  }

  /**
   * Is not ready any more, but answers for `drainDelaySeconds`; then takes no more requests, lets those under way end (those that take longer than `drainSeconds` are told so), then
   * closes everything. Calls after the first wait for the same end.
   */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(): Promise<void> {
    const { state, config, log } = this.services;
    const { drainDelaySeconds } = config.http;
    if (drainDelaySeconds > 0) {
      state.leaving = true;
      log.info({ inFlight: state.inFlight, seconds: drainDelaySeconds }, "not ready any more");
      await sleep(drainDelaySeconds * 1000);
    }
    state.draining = true;
    log.info({ inFlight: state.inFlight }, "draining");
    const end = performance.now() + config.http.drainSeconds * 1000;
    while (state.inFlight > 0 && performance.now() < end) await sleep(20);
    if (state.inFlight > 0) {
      log.warn({ inFlight: state.inFlight }, "some requests took too long; they are told so");
      state.stop.abort(draining());
      const last = performance.now() + 2000;
      while (state.inFlight > 0 && performance.now() < last) await sleep(20);
    }
    await this.#owned[Symbol.asyncDispose]();
    log.info({}, "stopped");
  }
}

function locationOf({ data, database }: ServerConfig, { memory }: ServerOptions): StoreLocation {
  if (memory) return { memory };
  return database === undefined ? { directory: data } : { url: database, directory: data };
}

/** Where the adapters' files are; its cache is this process's as long as `owned`. @throws InputError, DATA_IN_USE */
async function storageOf(config: ServerConfig, store: Store, log: Logger, owned: Owned): Promise<AdapterStorage> {
  const { adapterStore, adapterCacheBytes: cacheBytes, data } = config;
  const { storage, exclusive } = adapterStorage({ store: adapterStore, data, cacheBytes });
  if (exclusive !== undefined)
    owned.add(lockDirectory(exclusive, "give each server that uses --adapter-store a --data of its own"));
  const before = await store.noteAdapterStore(adapterStore);
  if (before !== undefined && before !== (adapterStore ?? "")) {
    const [from, to] = [before || "a directory", adapterStore ?? storage.name];
    log.warn(
      { from, to },
      "the adapters' files were kept elsewhere until now; copy them, or install the adapters again",
    );
  }
  return storage;
}

/** Whether keys are needed. @throws InputError FLAG_INVALID */
async function whoIsServed(
  { auth, host }: ServerConfig,
  store: Store,
): Promise<{ open: Principal | undefined; guarded: boolean }> {
  if (auth === "required" || (auth === "auto" && !(await store.unclaimed())))
    return { open: undefined, guarded: false };
  const guarded = auth === "auto";
  if (guarded && !isLoopback(host)) {
    const problem = `${host} is reached by others, and there are no keys; make some (milora keys create), or say --auth open`;
    throw new InputError("FLAG_INVALID", "--host", problem);
  }
  const principal = await store.openPrincipal();
  // On the loopback address whoever may ask could as well have started the server.
  return { open: guarded ? { ...principal, role: "admin" } : principal, guarded };
}

/** @returns where it listens @throws InputError SERVER_ADDRESS */
export async function listen(
  app: FastifyInstance,
  { host, port }: Pick<ServerConfig, "host" | "port">,
): Promise<string> {
  try {
    await app.listen({ host, port });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === "EADDRINUSE" ? "is in use; choose another --port (0 takes a free one)" : message;
    throw new InputError("SERVER_ADDRESS", `${host}:${port}`, reason, { cause: error });
  }
  const address = app.server.address();
  const bound = typeof address === "object" && address ? address.port : port;
  return `http://${host.includes(":") ? `[${host}]` : host}:${bound}`;
}
