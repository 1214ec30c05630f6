/** @file Sends a large body and tells how far it is, which fetch cannot. */
import { ApiError } from "../../api/client.ts";

/**
 * @param progress told bytes that were sent
 * @throws ApiError; DOMException AbortError
 */
export function sendArchive<T>(
  path: string,
  archive: Blob,
  { signal, progress }: { signal: AbortSignal; progress: (sent: number) => void },
): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.setRequestHeader("x-milora-studio", "1");
    request.setRequestHeader("content-type", "application/x-tar"); // what it is, gzip too, the server sees by itself
    request.upload.onprogress = ({ loaded }) => progress(loaded);
    request.onload = () => {
      const answer = new Response(request.responseText, { status: request.status, headers: headersOf(request) });
      answered<T>(answer).then(resolve, reject);
    };
    request.onerror = () =>
      reject(
        new ApiError(0, { code: "SERVER_UNREACHABLE", message: "The connection was lost. Nothing was installed." }),
      );
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(archive);
  });
}

async function answered<T>(response: Response): Promise<T> {
  const body = (await response.json().catch(() => ({}))) as { error?: ConstructorParameters<typeof ApiError>[1] };
  if (response.ok) return body as T;
  const { status } = response;
  throw new ApiError(
    status,
    body.error ?? { code: `HTTP_${status}`, message: `The server answered ${status}.` },
    response,
  );
}

function headersOf(request: XMLHttpRequest): Headers {
  const id = request.getResponseHeader("x-request-id");
  return new Headers(id === null ? {} : { "x-request-id": id });
}
