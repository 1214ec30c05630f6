/** @file What a worker says on its terminal. */
import type { WorkerEvent } from "../../serving/index.ts";
import { note, warn } from "../terminal.ts";

export function tellWorker(event: WorkerEvent): void {
  if (event.type === "failed") note(`failed ${event.label}: ${event.reason}`);
  else if (event.type === "shunned") warn(`${event.directory} is left to other workers: ${event.reason}`);
  else if ("label" in event) note(`${event.type} ${event.label}`);
  else if (event.type === "unreachable") warn("the database does not answer; waiting for it …");
  else note("the database answers again");
}
