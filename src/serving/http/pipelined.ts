/** @file Answers that wait for those before them on a connection: when it ends, node forgets them without a word. */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";

const open = new WeakMap<Socket, Set<ServerResponse>>();

/** Sees to it that `response` tells that it is closed, as the first one of a connection does by itself. */
export function closeWithConnection({ socket }: IncomingMessage, response: ServerResponse): void {
  let responses = open.get(socket);
  if (!responses) {
    const all = new Set<ServerResponse>();
    responses = all;
    open.set(socket, all);
    const end = (): void => void setImmediate(endAll, all); // node tells the first one before that
    if (socket.destroyed) end();
    else socket.once("close", end);
  }
  const own = responses;
  own.add(response);
  response.once("close", () => own.delete(response));
}

function endAll(responses: ReadonlySet<ServerResponse>): void {
  for (const response of responses) {
    response.destroy();
    response.emit("close");
  }
}
