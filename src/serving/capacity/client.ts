/** @file Asks a server from another thread, so that what the main thread is busy with is the server's part alone. */
import { Worker } from "node:worker_threads";

/** A request to be sent as JSON, and what came back when it had ended. */
type Answer = readonly [id: number, status: number, text: string];

/** As text: a file of its own would have to be found from sources, from what is built, and from a package. */
const CLIENT = `
const { parentPort, workerData } = require("node:worker_threads");
const http = require("node:http");
const agent = new http.Agent({ keepAlive: true });
const headers = { "content-type": "application/json" };
parentPort.on("message", ([id, path, body]) => {
  const request = http.request(workerData + path, { agent, headers, method: "POST" }, (response) => {
    let text = "";
    response.on("data", (chunk) => response.statusCode !== 200 && (text += chunk));
    response.on("end", () => parentPort.postMessage([id, response.statusCode, text]));
  });
  request.on("error", (error) => parentPort.postMessage([id, 0, error.message]));
  request.end(body);
});`;

export class Client implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #last = 0;

  /** @param url of the server */
  constructor(url: string) {
    this.#worker = new Worker(CLIENT, { eval: true, workerData: url });
    this.#worker.on("message", (answer: Answer) => {
      this.#waiting.get(answer[0])?.(answer);
      this.#waiting.delete(answer[0]);
    });
  }

  /** Resolves when the whole answer is there. @throws Error where it is none of success */
  async post(path: string, body: object): Promise<void> {
    const id = ++this.#last;
    const [, status, text] = await new Promise<Answer>((resolve) => {
      this.#waiting.set(id, resolve);
      this.#worker.postMessage([id, path, JSON.stringify(body)]);
    });
    if (status !== 200) throw new Error(`a request was answered with ${status}: ${text.slice(0, 200)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}
