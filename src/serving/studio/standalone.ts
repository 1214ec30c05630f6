/** @file The studio without a server: shows runs to who sits at this machine, with no backbone in memory and no keys. */
import type { FastifyInstance } from "fastify";
import { InputError, version } from "../../base/index.ts";
import { httpLimitsSchema, isLoopback } from "../http/config.ts";
import { newApp, prepareError } from "../http/fastify.ts";
import type { Logger } from "../http/logs.ts";
import { refuseForeignPages } from "../http/principal.ts";
import { listen } from "../http/server.ts";
import type { Principal } from "../store/index.ts";
import { checkDatabaseUrl } from "../store/url.ts";
import { checkFolders } from "./folders.ts";
import { studioPages } from "./pages.ts";
import { RunLibrary, runRoutes } from "./runs/index.ts";
import { SweepWatch, sweepRoutes } from "./sweeps/index.ts";
import type { StudioSession } from "./types.ts";

export interface RunStudioOptions {
  /** Folders of runs and reproductions. */
  readonly folders: readonly string[];
  /** PostgreSQL that has grids which workers do. */
  readonly database?: string | undefined;
  readonly host: string;
  readonly port: number;
  /** Told of requests that failed. */
  readonly log: Logger;
}

const SESSION: StudioSession = {
  ...{ signedIn: true, byKey: false, role: "admin", tenant: null, version, server: null, runs: true, sweeps: false },
};

/** Whoever may ask could as well read the files. */
const VISITOR: Principal = { tenant: "default", keyId: "open", role: "admin", weight: 1, limits: {} };

export class RunStudio implements AsyncDisposable {
  /** `http://HOST:PORT` */
  readonly url: string;
  readonly #app: FastifyInstance;

  private constructor(app: FastifyInstance, url: string) {
    this.#app = app;
    this.url = url;
  }

  /** @throws InputError FLAG_INVALID for an address that others reach; FILE_UNREADABLE, SERVER_ADDRESS */
  static async start({ folders, database, host, port, log }: RunStudioOptions): Promise<RunStudio> {
    if (!isLoopback(host)) {
      const problem = `${host} is reached by others, and there are no keys here; milora serve --runs DIR has them`;
      throw new InputError("FLAG_INVALID", "--host", problem);
    }
    checkFolders(folders);
    if (database !== undefined) checkDatabaseUrl(database);
    const shown: StudioSession = { ...SESSION, sweeps: database !== undefined };
    const app = await newApp(httpLimitsSchema.parse({}));
    app.addHook("onRequest", async (request, reply) => {
      request.facts = {};
      request.principal = VISITOR;
      reply.header("x-request-id", request.id);
      refuseForeignPages(request, "milora serve --runs DIR, with keys, does");
    });
    app.setErrorHandler((error, request, reply) => {
      const { status, body } = prepareError(error, request, reply);
      if (status >= 500) log.error({ id: request.id, err: error }, "a request failed");
      return reply.send(body);
    });
    await app.register(async (scope) => studioPages(scope, "/studio/"));
    const session = { schema: { hide: true } };
    app.get("/studio/v1/session", session, async (_, reply) => reply.header("cache-control", "no-store").send(shown));
    app.delete("/studio/v1/session", session, async () => shown);
    const library = new RunLibrary(folders);
    await app.register(async (scope) => runRoutes(scope, library));
    if (database !== undefined) {
      await app.register(async (scope) => sweepRoutes(scope, new SweepWatch(database, library)));
    }
    try {
      return new RunStudio(app, await listen(app, { host, port }));
    } catch (error) {
      await app.close();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#app.close();
  }
}
