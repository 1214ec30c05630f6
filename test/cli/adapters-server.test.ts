/** @file What `milora adapters … --server` does, by the admin API of a real server. */
import { execFileSync } from "node:child_process";
import { cpSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { openInstalled } from "../../src/cli/adapters/installed.ts";
import { AdminClient } from "../../src/cli/admin.ts";
import { tar } from "../../src/serving/adapters/testing.ts";
import { makeAdapter, startServer } from "../../src/serving/http/testing.ts";
import { fixture, temporary } from "./milora.ts";

async function serve(settings: Parameters<typeof startServer>[1] = {}) {
  const data = temporary();
  const started = await startServer(join(data, "data"), { logLevel: "silent", auth: "required", ...settings });
  onTestFinished(() => started[Symbol.asyncDispose]());
  const { store } = started.server.services;
  const { secret } = await store.keys.create({ admin: true });
  process.env.MILORA_ADMIN_KEY = secret;
  onTestFinished(() => void delete process.env.MILORA_ADMIN_KEY);
  for (const id of ["ann", "bob"]) await store.tenants.create({ id });
  const keyOf = async (tenant: string) => (await store.keys.create({ tenant })).secret;
  return { ...started, store, keyOf, directory: data, adapters: await openInstalled({ server: started.url }) };
}

test("install, list, grant, pin, revoke, remove; the adapter answers meanwhile", async () => {
  const { adapters, client, keyOf, directory, url } = await serve();
  const source = await makeAdapter(directory, "milora", 1);
  const installed = await adapters.install(source, { owner: null, name: "a" }, undefined);
  expect(installed).toMatchObject({ owner: null, name: "a", method: "milora", skipped: [] });
  const archive = join(directory, "b.tgz");
  execFileSync("tar", ["czf", archive, "-C", directory, "milora-1"]);
  const second = await adapters.install(archive, { owner: "ann", name: "b" }, undefined);
  expect(second.digest).toBe(installed.digest);
  const plain = join(directory, "c.tar");
  execFileSync("tar", ["cf", plain, "-C", source, "."]);
  expect(await adapters.install(plain, { owner: "ann", name: "b" }, undefined)).toMatchObject({
    replaced: installed.digest,
  });

  const bob = client(await keyOf("bob"));
  const ask = (model: string) => bob.completions.create({ model, prompt: "The cell", max_tokens: 4, temperature: 0 });
  await expect(ask("ann/b")).rejects.toMatchObject({ status: 404 });
  await adapters.grant({ owner: "ann", name: "b" }, "bob", true);
  const bare = (await ask("tiny-llama")).choices[0]!.text;
  const answer = (await ask("ann/b")).choices[0]!.text;
  expect(answer).not.toBe(bare);
  expect((await ask("a")).choices[0]!.text).toBe(answer);
  await adapters.pin({ owner: "ann", name: "b" }, true);
  expect(await adapters.list(undefined)).toMatchObject([
    { owner: null, name: "a", pinned: false, resident: true },
    { owner: "ann", name: "b", pinned: true, resident: true, inFlight: 0, corrupt: false },
  ]);
  expect(await adapters.list("bob")).toMatchObject([{ name: "a" }, { owner: "ann", name: "b" }]);
  await adapters.pin({ owner: "ann", name: "b" }, false);
  await adapters.grant({ owner: "ann", name: "b" }, "bob", false);
  await expect(ask("ann/b")).rejects.toMatchObject({ status: 404 });
  expect(await adapters.remove({ owner: "ann", name: "b" })).toMatchObject({ inFlight: 0 });
  expect(await adapters.list("ann")).toMatchObject([{ owner: null, name: "a" }]);
  // Only with an admin's key.
  const tenant = new AdminClient(url, { MILORA_ADMIN_KEY: await keyOf("ann") });
  await expect(tenant.call("GET", ["adapters"])).rejects.toMatchObject({ code: "FORBIDDEN", exitCode: 2 });
  const stranger = new AdminClient(url, { MILORA_ADMIN_KEY: "mk_wrong" });
  await expect(stranger.call("GET", ["adapters"])).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
});

test("what the server refuses is told in its words, and nothing stays of it", async () => {
  const { adapters, directory, server } = await serve();
  const source = await makeAdapter(directory, "lora", 1);
  const install = (from: string, name = "a", owner: string | null = null) =>
    adapters.install(from, { owner, name }, undefined);
  await expect(install(source, "tiny-llama")).rejects.toMatchObject({ code: "ADAPTER_NAME_INVALID", exitCode: 2 });
  await expect(install(source, "../x")).rejects.toMatchObject({ code: "ADAPTER_NAME_INVALID" });
  await expect(install(source, "a", "nobody")).rejects.toMatchObject({ code: "TENANT_NOT_FOUND" });
  await expect(install(fixture("lora/qv-suffixes"))).rejects.toThrow(
    /does not fit its config and this backbone: \d+ problems/,
  );
  await expect(install(fixture("lora"))).rejects.toMatchObject({ code: "FILE_UNREADABLE" });
  await expect(install("no/such")).rejects.toMatchObject({ code: "FILE_UNREADABLE" });
  const zip = join(directory, "a.zip");
  writeFileSync(zip, "PK\u0003\u0004 and more");
  await expect(install(zip)).rejects.toThrow("is a .zip");
  const cut = join(directory, "cut.tar");
  execFileSync("tar", ["cf", cut, "-C", source, "."]);
  truncateSync(cut, Math.floor(readFileSync(cut).length / 2));
  await expect(install(cut)).rejects.toMatchObject({ code: "ARCHIVE_INVALID" });
  const link = join(directory, "link.tar");
  cpSync(source, join(directory, "linked"), { recursive: true });
  execFileSync("ln", ["-sf", "/etc/passwd", join(directory, "linked", "adapter_config.json")]);
  execFileSync("tar", ["cf", link, "-C", join(directory, "linked"), "."]);
  await expect(install(link)).rejects.toThrow("neither a file nor a directory (symlink)");
  await expect(adapters.remove({ owner: null, name: "a" })).rejects.toMatchObject({ exitCode: 2 });
  await expect(adapters.install(source, { owner: null, name: "a" }, "assets/tiny-llama")).rejects.toThrow("--model");
  expect(await adapters.list(undefined)).toEqual([]);
  expect(server.services.registry.stats).toMatchObject({ resident: 0, loads: 0 });
});

test("a large upload that is refused at its beginning gets to read why", async () => {
  const { adapters, directory } = await serve({ residency: { maxBytes: 1_000_000 } });
  const large = join(directory, "large.tar");
  writeFileSync(large, await tar([{ name: "notes.txt", content: Buffer.alloc(32 * 1024 * 1024, 5) }]));
  for (let i = 0; i < 3; i++) {
    const installing = adapters.install(large, { owner: null, name: "a" }, undefined);
    await expect(installing).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE", exitCode: 2 });
  }
});
