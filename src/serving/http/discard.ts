/** @file The rest of a body that was refused: thrown away, so that a client which is still sending gets to read why. */
import type { IncomingMessage } from "node:http";

/** Times the largest body, and milliseconds, that are listened to; then the connection is closed. */
const MOST = { bodies: 8, ms: 10_000 };

/** What fastify says of bodies that are larger than its limit; those of uploads are their reader's to end. */
export function isTooLarge(error: unknown): boolean {
  return (error as { code?: unknown }).code === "FST_ERR_CTP_BODY_TOO_LARGE";
}

/** Reads on to the end of a request. @param limit bytes of the largest body */
export function discardRest(request: IncomingMessage, limit: number): void {
  const { socket } = request;
  let cutOff = false;
  const cut = (): void => {
    if (!cutOff) socket.destroySoon(); // once what was answered has been written
    cutOff = true;
  };
  const timer = setTimeout(cut, MOST.ms).unref();
  let bytes = 0;
  request
    .on("data", ({ length }: Buffer) => {
      bytes += length;
      if (bytes > MOST.bodies * limit) cut();
    })
    .on("error", () => {}) // it left
    .once("close", () => clearTimeout(timer))
    .resume();
}
