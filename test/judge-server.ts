/** @file An HTTP server that speaks the OpenAI protocol, and fails as it is told to: a judge for tests. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { onTestFinished } from "vitest";

export interface AskedOf {
  readonly path: string;
  readonly authorization: string | undefined;
  readonly body: {
    readonly model: string;
    readonly messages: readonly { readonly role: string; readonly content: string }[];
    readonly [name: string]: unknown;
  };
}

/** What the server says to a request: the judge's text, or anything by hand. */
export type Reply = string | ((response: ServerResponse) => void);

export interface JudgeServer {
  readonly url: string;
  readonly asked: AskedOf[];
  /** Most requests that were under way at one time. */
  readonly busiest: () => number;
}

export function json(status: number, value: unknown, headers: Record<string, string> = {}): Reply {
  return (response) => {
    response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
  };
}

export function completion(content: string | null, more: object = {}) {
  const choices = [{ index: 0, message: { role: "assistant", content, ...more }, finish_reason: "stop" }];
  return { id: "x", object: "chat.completion", choices, usage: { prompt_tokens: 100, completion_tokens: 20 } };
}

/** @param reply to the n-th request, from 0 */
export async function judgeServer(reply: (asked: AskedOf, n: number) => Reply | Promise<Reply>): Promise<JudgeServer> {
  const asked: AskedOf[] = [];
  let [under, most] = [0, 0];
  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    most = Math.max(most, ++under);
    response.on("close", () => under--);
    const body = JSON.parse(await text(request)) as AskedOf["body"];
    const one = { path: `${request.method} ${request.url}`, authorization: request.headers.authorization, body };
    asked.push(one);
    const said = await reply(one, asked.length - 1);
    const act = typeof said === "string" ? (json(200, completion(said)) as Exclude<Reply, string>) : said;
    act(response);
  };
  const server = createServer((request, response) => void handle(request, response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/v1`, asked, busiest: () => most };
}
