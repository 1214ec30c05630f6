/** @file Talks to the Hugging Face hub: which server, which token, what a repository holds, and again when it fails. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { reasonOf, userCacheDirectory } from "../base/index.ts";

/** A file of a repository. `git` is git's own sha1, for files outside of large-file storage. */
export interface HubFile {
  readonly path: string;
  readonly size: number;
  readonly algorithm: "sha256" | "git";
  readonly digest: string;
}

export interface HubListing {
  readonly commit: string;
  readonly files: HubFile[];
}

export interface HubRepo {
  readonly type: "model" | "dataset";
  readonly name: string;
}

const DEFAULT_ENDPOINT = "https://huggingface.co";
/** Waits before the second, third, … attempt. */
const PAUSES_MS = [500, 1000, 2000, 4000];
/** Failures of a connection that was there, or of names: these pass. A refused connection does not. */
const PASSING = /ECONNRESET|EPIPE|ETIMEDOUT|EAI_AGAIN|UND_ERR_SOCKET|UND_ERR_(HEADERS|BODY|CONNECT)_TIMEOUT|terminated/;

/** `HF_ENDPOINT`, without a slash at its end. */
export function hubEndpoint(): string {
  return (process.env.HF_ENDPOINT || DEFAULT_ENDPOINT).replace(/\/+$/, "");
}

/** `HF_TOKEN`, else the file in which `hf auth login` keeps it. */
export function hubToken(): string | undefined {
  const { HF_TOKEN, HF_TOKEN_PATH, HF_HOME } = process.env;
  if (HF_TOKEN) return HF_TOKEN;
  const home = HF_HOME || join(userCacheDirectory(), "huggingface");
  const path = HF_TOKEN_PATH || join(home, "token");
  try {
    return (existsSync(path) && readFileSync(path, "utf8").trim()) || undefined;
  } catch {
    return undefined;
  }
}

/** Whether a failure may pass by itself. */
export function isPassing(error: unknown): boolean {
  const cause = (error as { cause?: { code?: string; message?: string } }).cause;
  return PASSING.test(`${(error as { code?: string }).code} ${cause?.code} ${cause?.message} ${reasonOf(error)}`);
}

/** Waits before attempt `attempt` (from 1), or as long as the server asked for; false when there are no more attempts. */
export async function pauseBefore(attempt: number, signal: AbortSignal | undefined, asked = 0): Promise<boolean> {
  const pause = PAUSES_MS[attempt - 1];
  if (pause === undefined) return false;
  await sleep(Math.max(pause, Math.min(asked, 60) * 1000), undefined, signal ? { signal } : {}).catch(() => undefined);
  signal?.throwIfAborted();
  return true;
}

/** `fetch`, again after a pause when the connection breaks or the server is busy (429, 5xx). */
export async function hubFetch(
  url: Parameters<typeof fetch>[0],
  init: RequestInit | undefined,
  signal: AbortSignal | undefined,
): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    let response: Response | undefined;
    try {
      response = await fetch(url, { ...init, ...(signal && { signal }) });
      if (response.status !== 429 && response.status < 500) return response;
    } catch (error) {
      signal?.throwIfAborted();
      if (!isPassing(error) || !(await pauseBefore(attempt, signal))) throw error;
      continue;
    }
    const asked = Number(response.headers.get("retry-after")) || 0;
    if (attempt > PAUSES_MS.length) return response;
    await response.body?.cancel();
    await pauseBefore(attempt, signal, asked);
  }
}

/** What functions of `@huggingface/hub` are to be given beside the repository. */
export function hubConnection(signal: AbortSignal | undefined) {
  const accessToken = hubToken();
  return {
    hubUrl: hubEndpoint(),
    ...(accessToken !== undefined && { accessToken }),
    fetch: (url: Parameters<typeof fetch>[0], init?: RequestInit) => hubFetch(url, init, signal),
  };
}

/** All files of a revision that `wanted` says yes to. Paths that would lead out of a directory are left out. */
export async function listHub(
  repo: HubRepo,
  revision: string,
  wanted: (path: string) => boolean,
  signal: AbortSignal | undefined,
): Promise<HubListing> {
  const { datasetInfo, listFiles, modelInfo } = await import("@huggingface/hub"); // seldom needed, and not small
  const hub = hubConnection(signal);
  const asked = { name: repo.name, revision, additionalFields: ["sha"] as "sha"[], ...hub };
  const { sha: commit } = repo.type === "model" ? await modelInfo(asked) : await datasetInfo(asked);
  const files: HubFile[] = [];
  for await (const entry of listFiles({ repo, revision: commit, recursive: true, ...hub })) {
    const { path, size, lfs, oid } = entry;
    const parts = path.split(/[/\\]/);
    if (entry.type !== "file" || !wanted(path) || parts.includes("..") || parts.includes("")) continue;
    if (lfs) files.push({ path, size: lfs.size, algorithm: "sha256", digest: lfs.oid });
    else files.push({ path, size, algorithm: "git", digest: oid ?? "" });
  }
  return { commit, files };
}

/** HTTP status of what a request to the hub threw. */
export function hubStatus(error: unknown): number | undefined {
  const status = error instanceof Error && (error as Error & { readonly statusCode?: unknown }).statusCode;
  return typeof status === "number" ? status : undefined;
}

/** Why the hub could not be reached, in one line. */
export function hubReason(error: unknown): string {
  const cause = (error as { cause?: unknown }).cause;
  return reasonOf(error).split("\n")[0]! + (cause instanceof Error ? `: ${cause.message}` : "");
}
