/** @file What the routes work with. */
import type { Engine, Scheduler } from "../../generation/index.ts";
import type { AdapterRegistry } from "../adapters/index.ts";
import type { Principal, Store } from "../store/index.ts";
import type { Sessions } from "../studio/sessions.ts";
import type { ServerConfig } from "./config.ts";
import type { Faults } from "./faults.ts";
import type { History } from "./history.ts";
import type { Logger } from "./logs.ts";
import type { Metrics } from "./metrics.ts";
import type { ChatFormat } from "./openai/chat-format.ts";

export interface Services {
  readonly config: ServerConfig;
  readonly engine: Engine;
  readonly scheduler: Scheduler;
  readonly registry: AdapterRegistry;
  readonly store: Store;
  readonly metrics: Metrics;
  readonly history: History;
  readonly faults: Faults;
  readonly log: Logger;
  /** What clients call the backbone. */
  readonly base: string;
  /** How chats are put to the model. */
  readonly chat: ChatFormat;
  /** Who is signed in to the studio. */
  readonly sessions: Sessions;
  /** Seconds since 1970. */
  readonly startedAt: number;
  /** Who everybody is that brings no key; undefined where keys are required. */
  readonly open: Principal | undefined;
  /** Open without having been told so: pages of other sites are refused. */
  readonly guarded: boolean;
  readonly state: ServerState;
}

/** Changes while the server runs. */
export interface ServerState {
  draining: boolean;
  /** It was told to stop and goes on answering for `http.drainDelaySeconds`, while balancers notice. */
  leaving: boolean;
  /** Requests that have arrived and are not answered to the end. */
  inFlight: number;
  /** Aborted when draining has taken too long. */
  readonly stop: AbortController;
}
