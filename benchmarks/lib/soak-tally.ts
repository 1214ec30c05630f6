/** @file What a soak has seen: requests, errors that were asked for, and those that were not. */
import type { Agent } from "node:http";
import type { Random } from "../../src/base/index.ts";
import { type Answer, type Ask, send } from "./http-client.ts";

export interface TenantOfSoak {
  readonly id: string;
  readonly key: string;
}

type Given = "url" | "base" | "adminKey" | "agent" | "tenants" | "crowd" | "shared" | "archives" | "directories";
export type SoakParts = Pick<Soak, Given>;

/** What everybody who makes load shares. */
export class Soak {
  readonly url: string;
  readonly base: string;
  readonly adminKey: string;
  readonly agent: Agent;
  readonly tenants: readonly TenantOfSoak[];
  /** The one that may have few requests at a time. */
  readonly crowd: TenantOfSoak;
  /** Adapters for everybody. */
  readonly shared: readonly string[];
  /** Archives to upload. */
  readonly archives: readonly Uint8Array[];
  /** Directories that the server may load adapters from, by their paths. */
  readonly directories: readonly string[];
  requests = 0;
  /** Requests whose answer was not waited for. */
  cuts = 0;
  /** Tokens that came. */
  tokens = 0;
  /** By status and code. */
  readonly provoked = new Map<string, number>();
  /** By who asked, status and code. */
  readonly faults = new Map<string, number>();
  /** Of hundreds of streams: those that were let in. */
  admitted = 0;
  /** Keys that were revoked while they were used, and how long after that one was still let in at most, ms. */
  revoked = 0;
  latestMs = 0;
  /** Tenants that came and went. */
  guests = 0;
  stopped = false;

  constructor(parts: SoakParts) {
    this.url = parts.url;
    this.base = parts.base;
    this.adminKey = parts.adminKey;
    this.agent = parts.agent;
    this.tenants = parts.tenants;
    this.crowd = parts.crowd;
    this.shared = parts.shared;
    this.archives = parts.archives;
    this.directories = parts.directories;
  }

  /**
   * Sends a request and counts how it ends.
   * @param who names it where it goes wrong
   * @param expected statuses; any other one, a stream that breaks off, and a connection that fails are faults
   */
  async ask(
    who: string,
    path: string,
    request: Omit<Ask, "agent" | "url">,
    ...expected: readonly number[]
  ): Promise<Answer | undefined> {
    this.requests++;
    let answer: Answer;
    try {
      answer = await send({ ...request, agent: this.agent, url: `${this.url}${path}` });
    } catch (error) {
      this.fault(`${who}: ${(error as NodeJS.ErrnoException).code ?? error}`);
      return undefined;
    }
    if (answer.cut) {
      this.cuts++;
      return answer;
    }
    const { status, code, tokens, done, eventMs, text } = answer;
    const wanted = expected.length > 0 ? expected : [200];
    const broken = eventMs.length > 0 && (!done || code !== undefined);
    const kind = `${status}${code ? ` ${code}` : ""}`;
    if (!wanted.includes(status) || broken) this.fault(`${who}: ${broken ? "broke off, " : ""}${kind}`, text);
    else if (status >= 400) count(this.provoked, kind);
    if (Number.isFinite(tokens)) this.tokens += tokens;
    return answer;
  }

  /** Something is not as it should be. The first of a kind is told at once. */
  fault(kind: string, text = ""): void {
    if (!this.faults.has(kind)) {
      process.stderr.write(`NOT PROVOKED ${new Date().toISOString()} ${kind} ${text.slice(0, 400)}\n`);
    }
    count(this.faults, kind);
  }
}

/** One piece of load: done again and again, several at a time, each with a number of its own. */
export type Actor = (soak: Soak, random: Random, turn: number, copy: number) => Promise<void>;

function count(map: Map<string, number>, key: string): void {
  map.set(key, (map.get(key) ?? 0) + 1);
}
