/** @file For tests: a store of objects of one's own, OpenStack Swift with its S3 API, in a temporary directory on the loopback address. */
import { type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { userInfo } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { AwsClient } from "aws4fetch";
import { serviceDirectory, spawnService } from "../../testing/services.ts";

const SERVICES = ["account", "container", "object"] as const;
const BINARIES = "/usr/bin";
const KEY_ID = "test:tester";
export const SECRET = "s3cret+key/of=the+store";

/** Why there is no store that tests may stop; undefined: there is one. */
export const NO_OBJECT_STORE: string | undefined = [...SERVICES, "proxy"].every((service) =>
  existsSync(join(BINARIES, `swift-${service}-server`)),
)
  ? undefined
  : "no store of objects: apt-get install swift-proxy swift-account swift-container swift-object";

/** Below those that connections take by themselves: one to a port that nobody listens on might be its own other end. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const server = createServer().listen(port, "127.0.0.1");
    const free = await once(server, "listening").then(() => true, () => false); // biome-ignore format: one line
    server.close();
    if (free) return port;
  }
}

async function listens(port: number): Promise<boolean> {
  const socket = connect(port, "127.0.0.1");
  const connected = await once(socket, "connect").then(() => true, () => false); // biome-ignore format: one line
  socket.destroy();
  return connected;
}

/** One device and no copies; nothing but what S3's API needs. */
export class ObjectStore implements AsyncDisposable {
  readonly url: string;
  readonly #directory: string;
  readonly #client = new AwsClient({ accessKeyId: KEY_ID, secretAccessKey: SECRET, region: "us-east-1", retries: 0 });
  readonly #processes: ChildProcess[] = [];
  #proxy: ChildProcess | undefined;
  readonly #onExit = (): void => this.#kill();

  private constructor(directory: string, port: number) {
    this.#directory = directory;
    this.url = `http://127.0.0.1:${port}`;
    process.once("exit", this.#onExit);
  }

  static async start(): Promise<ObjectStore> {
    if (NO_OBJECT_STORE) throw new Error(NO_OBJECT_STORE);
    const directory = serviceDirectory("milora-objects");
    mkdirSync(join(directory, "devices", "d1"), { recursive: true });
    const write = (name: string, lines: readonly string[]): void =>
      writeFileSync(join(directory, name), `${lines.join("\n")}\n`);
    write("swift.conf", ["[swift-hash]", "swift_hash_path_suffix = milora", "[storage-policy:0]", "name = one", "default = yes"]); // biome-ignore format: one line
    const ports: number[] = [];
    while (ports.length <= SERVICES.length) {
      const port = await freePort();
      if (!ports.includes(port)) ports.push(port);
    }
    const common = (port: number): string[] => [
      ...["[DEFAULT]", "bind_ip = 127.0.0.1", `bind_port = ${port}`, `swift_dir = ${directory}`, "workers = 0"],
      ...[`user = ${userInfo().username}`, "mount_check = false", `devices = ${join(directory, "devices")}`],
    ];
    await Promise.all(
      SERVICES.map(async (service, i) => {
        write(`${service}.conf`, [
          ...[...common(ports[i]!), "[pipeline:main]", `pipeline = ${service}-server`],
          ...[`[app:${service}-server]`, `use = egg:swift#${service}`],
        ]);
        const ring = (...args: string[]) =>
          promisify(execFile)(join(BINARIES, "swift-ring-builder"), [join(directory, `${service}.builder`), ...args]);
        await ring("create", "2", "1", "1");
        await ring("add", `r1z1-127.0.0.1:${ports[i]}/d1`, "1");
        await ring("rebalance");
      }),
    );
    write("proxy.conf", [
      ...[...common(ports[3]!), "[pipeline:main]", "pipeline = cache s3api tempauth slo proxy-server"],
      ...["[app:proxy-server]", "use = egg:swift#proxy", "account_autocreate = true", "error_suppression_interval = 0"],
      ...["[filter:cache]", "use = egg:swift#memcache", "memcache_servers = 127.0.0.1:1"],
      ...["[filter:s3api]", "use = egg:swift#s3api", "[filter:slo]", "use = egg:swift#slo"],
      ...["[filter:tempauth]", "use = egg:swift#tempauth", `user_${KEY_ID.replace(":", "_")} = ${SECRET} .admin`],
    ]);
    const store = new ObjectStore(directory, ports[3]!);
    try {
      await store.#begin(ports);
      return store;
    } catch (error) {
      await store[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #begin(ports: readonly number[]): Promise<void> {
    for (const [i, service] of SERVICES.entries()) {
      const child = this.#spawn(service);
      this.#processes.push(child);
      while (!(await listens(ports[i]!))) {
        if (child.exitCode !== null) throw new Error(`the store of objects ended: ${service}`);
        await sleep(50);
      }
    }
    await this.resume();
  }

  /** What a server finds it by. */
  get environment(): Record<string, string> {
    return { AWS_ENDPOINT_URL: this.url, AWS_ACCESS_KEY_ID: KEY_ID, AWS_SECRET_ACCESS_KEY: SECRET };
  }

  /** Makes an empty bucket. @returns its name */
  async bucket(name: string): Promise<string> {
    await this.#ask("PUT", name);
    return name;
  }

  /** Keys in a bucket. */
  async keys(bucket: string): Promise<string[]> {
    const text = await (await this.#ask("GET", `${bucket}?list-type=2`)).text();
    return [...text.matchAll(/<Key>(.*?)<\/Key>/g)].map(([, key]) => key!);
  }

  async get(key: string): Promise<Buffer> {
    return Buffer.from(await (await this.#ask("GET", key)).arrayBuffer());
  }

  /** Puts anything in an object's place. @param key with the bucket before it */
  async put(key: string, content: Uint8Array): Promise<void> {
    await this.#ask("PUT", key, new Uint8Array(content));
  }

  async delete(key: string): Promise<void> {
    await this.#ask("DELETE", key);
  }

  /** It takes connections and answers nothing, until `wake`. */
  hang(): void {
    this.#proxy?.kill("SIGSTOP");
  }

  wake(): void {
    this.#proxy?.kill("SIGCONT");
  }

  /** Nobody listens any more. */
  async stop(): Promise<void> {
    const proxy = this.#proxy;
    this.#proxy = undefined;
    proxy?.kill("SIGKILL");
    if (proxy && proxy.exitCode === null && proxy.signalCode === null) await once(proxy, "exit");
  }

  /** Starts it again after `stop`. */
  async resume(): Promise<void> {
    const proxy = this.#spawn("proxy");
    this.#proxy = proxy;
    while (
      !(await fetch(this.url).then(
        (answer) => answer.status < 500,
        () => false,
      ))
    ) {
      // biome-ignore format: one line
      if (proxy.exitCode !== null) throw new Error("the store of objects ended");
      await sleep(50);
    }
  }

  async #ask(method: string, path: string, body?: Uint8Array<ArrayBuffer>): Promise<Response> {
    // The services behind it may still be starting.
    for (let attempt = 1; ; attempt++) {
      const answer = await this.#client.fetch(`${this.url}/${path}`, { method, aws: { service: "s3" }, ...(body && { body }) }); // biome-ignore format: one line
      if (answer.ok) return answer;
      if (attempt === 100) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
      await sleep(100);
    }
  }

  #spawn(service: string): ChildProcess {
    return spawnService(join(BINARIES, `swift-${service}-server`), [join(this.#directory, `${service}.conf`)]);
  }

  #kill(): void {
    for (const process_ of [...this.#processes, this.#proxy]) process_?.kill("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    process.off("exit", this.#onExit);
    const ended = [...this.#processes, this.#proxy].flatMap((child) =>
      child && child.exitCode === null && child.signalCode === null ? [once(child, "exit")] : [],
    );
    this.#kill();
    await Promise.all(ended);
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
