/** @file The tasks there are: whatever the files of tasks/ export. */
import { readdirSync } from "node:fs";
import { InputError } from "../base/index.ts";
import { nearest } from "../training/index.ts";
import { type ConversationForm, type Form, PROTOCOLS, type Protocol, type RowForm, type Task } from "./task.ts";

const FOLDER = new URL("./tasks/", import.meta.url);

let loaded: Promise<ReadonlyMap<string, Task>> | undefined;

async function load(): Promise<ReadonlyMap<string, Task>> {
  const files = readdirSync(FOLDER).filter((name) => /(?<!\.d|\.test)\.[jt]s$/.test(name));
  const tasks = new Map<string, Task>();
  for (const file of files.sort()) {
    const module = (await import(new URL(file, FOLDER).href)) as { tasks: readonly Task[] };
    for (const task of module.tasks) tasks.set(task.name, task);
  }
  return tasks;
}

/** All tasks by name, in the order of their files. */
export function loadTasks(): Promise<ReadonlyMap<string, Task>> {
  loaded ??= load();
  return loaded;
}

/**
 * The tasks that names stand for: a task's own, that of a group, or the harness's.
 * @throws InputError TASK_UNKNOWN, TASK_UNSUPPORTED; each names all that are wrong
 */
export async function findTasks(names: readonly string[], protocol: Protocol): Promise<Task[]> {
  const tasks = await loadTasks();
  const known = new Map<string, Task[]>();
  const add = (name: string, task: Task) => known.set(name, [...(known.get(name) ?? []), task]);
  for (const task of tasks.values()) {
    add(task.name, task);
    for (const group of task.groups ?? []) add(group, task);
    const { harnessName } = task.protocols["lm-eval"] ?? {};
    if (harnessName !== undefined) add(harnessName, task);
  }
  const unknown = names.filter((name) => !known.has(name));
  if (unknown.length) {
    const problems = unknown.map((name) => {
      const meant = nearest(name, [...known.keys()]);
      return `no task "${name}"${meant === undefined ? "" : `, did you mean "${meant}"?`}`;
    });
    throw new InputError("TASK_UNKNOWN", "--tasks (`milora eval --tasks list` has all names)", problems);
  }
  const found = [...new Set(names.flatMap((name) => known.get(name)!))];
  const without = found.filter((task) => !task.protocols[protocol]);
  if (without.length) {
    const problems = without.map(({ name, protocols }) => {
      const there = PROTOCOLS.filter((other) => protocols[other]).join(", ");
      return `"${name}" is not defined under ${protocol}, only under ${there}`;
    });
    throw new InputError("TASK_UNSUPPORTED", "--protocol", problems);
  }
  return found;
}

/** The protocol where none is asked for: that of conversations where all names are such tasks, else hu2023. */
export async function defaultProtocol(names: readonly string[]): Promise<Protocol> {
  const tasks = await loadTasks();
  const own = names.map((name) => tasks.get(name));
  const conversations = own.length > 0 && own.every((task) => task && conversationOf(task));
  return conversations ? "fastchat" : "hu2023";
}

/** A task's form under a protocol that `findTasks` has checked. */
export function formOf(task: Task, protocol: Protocol): Form {
  return task.protocols[protocol]!;
}

/** The form of a task whose rows mark themselves. @throws InputError TASK_UNSUPPORTED for conversations */
export function rowFormOf(task: Task, protocol: Protocol): RowForm {
  const form = formOf(task, protocol);
  if (form.kind !== "conversation") return form;
  throw new InputError("TASK_UNSUPPORTED", task.name, "is a conversation, which only a judge can mark");
}

/** Whether all rows of a task have the same solved questions in front, which then need to be read only once. */
export function hasSameShots(task: Task, protocol: Protocol, shots?: number): boolean {
  const { count, order } = rowFormOf(task, protocol).shots;
  return order === "first" && (shots ?? count) > 0;
}

/** The form of a conversation; undefined for tasks whose rows mark themselves. */
export function conversationOf(task: Task): ConversationForm | undefined {
  return Object.values(task.protocols).find((form) => form.kind === "conversation");
}
