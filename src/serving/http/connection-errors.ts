/** @file What a connection is told whose bytes are no request, or come too slowly: there is no request yet, but the form is that of every answer. */
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { ServingError } from "../errors.ts";
import { answerOf, RequestError } from "./errors.ts";

/**
 * @param headers of every answer
 * @param newId of a request that has named itself none
 */
export function connectionErrors(headers: Readonly<Record<string, string>>, newId: () => string) {
  return (error: NodeJS.ErrnoException, socket: Socket): void => {
    if (error.code === "ECONNRESET" || socket.destroyed) return;
    if (socket.writable && !isAnswered(socket)) {
      const id = newId();
      const { status, body } = answerOf(refusalOf(error), id);
      const text = JSON.stringify(body);
      const lines = {
        ...headers,
        "x-request-id": id,
        "content-type": "application/json; charset=utf-8",
        "content-length": Buffer.byteLength(text),
        connection: "close",
      };
      const head = Object.entries(lines).map(([name, value]) => `${name}: ${value}\r\n`);
      socket.write(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${head.join("")}\r\n${text}`);
    }
    socket.destroy(error);
  };
}

function refusalOf({ code }: NodeJS.ErrnoException): ServingError | RequestError {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") {
    return new ServingError("REQUEST_TIMEOUT", 408, "the request did not arrive in time; send it again");
  }
  if (code === "HPE_HEADER_OVERFLOW") {
    return new ServingError(
      "HEADERS_TOO_LARGE",
      431,
      "the request's headers are too long; send fewer, or shorter ones",
    );
  }
  return new RequestError("is no HTTP request");
}

/** Whether an answer to an earlier request is being written: a second one would land within it. Node itself asks the same. */
function isAnswered(socket: Socket): boolean {
  return (socket as { _httpMessage?: { readonly headersSent: boolean } | null })._httpMessage?.headersSent ?? false;
}
