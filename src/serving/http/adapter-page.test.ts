/** @file Lists of adapters a page at a time: every one once, whatever is added meanwhile; filters; cursors that are none. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Started, scratch, startServer } from "./testing.ts";

const { directory, remove } = scratch();
let started: Started;
let admin: string;
let ann: string;

beforeAll(async () => {
  started = await startServer(directory, { auth: "required" });
  const { store } = started.server.services;
  for (const id of ["ann", "bob"]) await store.tenants.create({ id });
  admin = (await store.keys.create({ admin: true })).secret;
  ann = (await store.keys.create({ tenant: "ann" })).secret;
  const facts = { digest: "0".repeat(64), rank: 4, bytes: 1000 };
  const put = (owner: string | null, name: string, method = "lora") =>
    store.adapters.put({ ...facts, owner, name, method });
  for (const name of ["b", "a", "c_1", "cx1"]) await put(null, name);
  for (const name of ["b", "Z", "mine"]) await put("ann", name, "milora");
  for (const name of ["a", "secret"]) await put("bob", name);
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

const get = async (path: string, key = admin) => {
  const response = await fetch(`${started.url}${path}`, { headers: { authorization: `Bearer ${key}` } });
  // biome-ignore lint/suspicious/noExplicitAny: each test says what it expects
  return { status: response.status, body: (await response.json()) as any };
};
type Named = { readonly owner: string | null; readonly name: string };
const names = (rows: readonly Named[]) => rows.map(({ owner, name }) => (owner === null ? name : `${owner}/${name}`));

async function turned(limit: number): Promise<string[]> {
  const found: string[] = [];
  let cursor = "";
  for (;;) {
    const { body } = await get(`/admin/v1/adapters?limit=${limit}${cursor}`);
    expect(body.total).toBe(9);
    expect(body.adapters.length).toBeLessThanOrEqual(limit);
    found.push(...names(body.adapters));
    if (body.next === null) return found;
    cursor = `&cursor=${body.next}`;
  }
}

test("every adapter is on one page, in the order of the whole list", async () => {
  const { body } = await get("/admin/v1/adapters");
  const all = names(body.adapters);
  expect([all.length, body.next]).toEqual([9, null]);
  expect(all.slice(0, 4).sort()).toEqual(["a", "b", "c_1", "cx1"]); // everybody's first
  for (const limit of [1, 2, 3, 4, 8, 9, 500]) expect(await turned(limit)).toEqual(all);
});

test("filters hold on all pages; what looks like a pattern is none", async () => {
  const found = async (query: string) => names((await get(`/admin/v1/adapters?${query}`)).body.adapters);
  expect((await found("owner=ann")).sort()).toEqual(["ann/Z", "ann/b", "ann/mine"]);
  expect(await found("shared=1&name=a")).toEqual(["a"]);
  expect(await found("q=c_1")).toEqual(["c_1"]);
  expect(await found("q=BOB/S")).toEqual(["bob/secret"]);
  expect((await found("q=milora")).length).toBe(3);
  expect(await found("resident=1")).toEqual([]);
  expect((await found("tenant=ann")).sort()).toEqual(["a", "ann/Z", "ann/b", "ann/mine", "b", "c_1", "cx1"]);
});

test("a tenant turns pages of what it may use, and of nothing else", async () => {
  const { body } = await get("/v1/adapters?limit=5", ann);
  expect([body.total, body.data.length]).toEqual([7, 5]);
  const rest = await get(`/v1/adapters?limit=5&cursor=${body.next}`, ann);
  const seen = [...body.data, ...rest.body.data].map(({ id }: { id: string }) => id);
  expect(seen.sort()).toEqual(["a", "ann/Z", "ann/b", "ann/mine", "b", "c_1", "cx1"]);
  expect((await get("/v1/adapters?q=secret", ann)).body).toMatchObject({ data: [], total: 0 });
  expect((await get("/v1/adapters?own=1&name=b", ann)).body.data).toMatchObject([{ id: "ann/b" }]);
  const beyond = Buffer.from(JSON.stringify(["ann", "zzz"])).toString("base64url");
  expect((await get(`/v1/adapters?cursor=${beyond}`, ann)).body.data).toEqual([]);
});

test.each(["cursor=x", "cursor=W10", "limit=0", "limit=501", "limit=x", "owner=ann&other=1", "shared=yes"])(
  "%s is refused",
  async (query) => {
    expect(await get(`/admin/v1/adapters?${query}`)).toMatchObject({ status: 400 });
  },
);
