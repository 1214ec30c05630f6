/** @file Figure 2 as the server computes it: asked for, and its lines read as they come. */
import type { ExploreDataLine, ExploreDataRequest, ExploreDataResult } from "../../../../src/serving/studio/types.ts";
import { ApiError, send } from "../../api/client.ts";

export interface Progress {
  readonly done: number;
  readonly total: number;
}

/** @throws ApiError, of what is refused at once and of what goes wrong on the way; DOMException AbortError */
export async function figureOf(
  json: ExploreDataRequest,
  onProgress: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<ExploreDataResult> {
  const response = await send("/studio/v1/explore/data", { method: "POST", json, signal });
  for await (const line of linesOf(response)) {
    if ("result" in line) return line.result;
    if ("error" in line) throw new ApiError(400, line.error, response);
    onProgress(line);
  }
  const message = "The connection ended before the answer was whole. Is the server still running?";
  throw new ApiError(0, { code: "SERVER_UNREACHABLE", message });
}

async function* linesOf(response: Response): AsyncGenerator<ExploreDataLine> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop()!;
    for (const line of lines) yield JSON.parse(line) as ExploreDataLine;
  }
}
