/** @file Reads an answer that comes as server-sent events. */
import { ApiError } from "../../api/client.ts";

/**
 * The objects of a stream, until it says `[DONE]`.
 * @throws ApiError for an error in the stream, and when it breaks off; DOMException AbortError
 */
export async function* eventsOf(response: Response): AsyncGenerator<object> {
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error: unknown) => {
        throw isAbort(error) ? error : brokenOff();
      });
      if (done) throw brokenOff();
      text += decoder.decode(value, { stream: true });
      const events = text.split("\n\n");
      text = events.pop()!;
      for (const event of events) {
        const data = dataOf(event);
        if (data === "[DONE]") return;
        if (data !== "") yield checked(JSON.parse(data) as object);
      }
    }
  } finally {
    void reader.cancel().catch(() => {});
  }
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

function dataOf(event: string): string {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

function checked(event: object): object {
  if (!("error" in event)) return event;
  throw new ApiError(500, event.error as { message: string; code: string });
}

function brokenOff(): ApiError {
  return new ApiError(0, { code: "STREAM_BROKEN", message: "The answer broke off: the connection was lost." });
}
