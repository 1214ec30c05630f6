/** @file Tenants and keys: who gets in, and from which moment on no longer. */
import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { keys } from "./schema.ts";
import { openStore } from "./store.ts";
import type { Tenants } from "./tenants.ts";
import { onBoth } from "./testing.ts";

const withCode = (code: string) => expect.objectContaining({ code });

const WRONG: [Parameters<Tenants["create"]>[0], string][] = [
  [{ id: "" }, "id"],
  [{ id: "Acme" }, "id"],
  [{ id: "a/b" }, "id"],
  [{ id: "../x" }, "id"],
  [{ id: "a".repeat(64) }, "id"],
  [{ id: "shared" }, "id"],
  [{ id: "a", name: "two\nlines" }, "name"],
  [{ id: "a", weight: 0 }, "weight"],
  [{ id: "a", weight: Number.NaN }, "weight"],
  [{ id: "a", limits: { tokensPerDay: 0 } }, "limits.tokensPerDay"],
  [{ id: "a", limits: { tokensPerMonth: 1 } as object }, "limits"],
];

onBoth((place) => {
  test("tenants are made, changed, disabled, removed; the built-in one is not seen", async () => {
    const { store, clock } = await place.store();
    const { tenants } = store;
    const acme = { id: "acme", name: "Acme Ltd", weight: 2, limits: { maxConcurrent: 4 }, disabled: false };
    expect(await tenants.create({ id: "acme", name: " Acme Ltd ", weight: 2, limits: { maxConcurrent: 4 } })).toEqual({
      ...acme,
      createdAt: new Date(clock.time),
    });
    await expect(tenants.create({ id: "acme" })).rejects.toThrow(withCode("TENANT_EXISTS"));
    await tenants.create({ id: "b" });
    expect(await tenants.list()).toMatchObject([acme, { id: "b", name: "b", weight: 1, limits: {} }]);
    expect(
      await tenants.update("acme", { limits: { tokensPerDay: 5, maxConcurrent: null }, disabled: true }),
    ).toMatchObject({
      ...acme,
      limits: { tokensPerDay: 5 },
      disabled: true,
    });
    const more = { limits: { tokensPerDay: 5, maxAdapters: 1 } }; // what is not named stays
    expect(await tenants.update("acme", { limits: { maxAdapters: 1 } })).toMatchObject({ ...more, disabled: true });
    expect(await tenants.update("b", {})).toEqual(await tenants.get("b"));
    await tenants.remove("b");
    for (const id of ["b", "admin", "ADMIN", "' OR 1=1 --"]) {
      await expect(tenants.get(id)).rejects.toThrow(withCode("TENANT_NOT_FOUND"));
      await expect(tenants.update(id, { weight: 9 })).rejects.toThrow(withCode("TENANT_NOT_FOUND"));
      await expect(tenants.remove(id)).rejects.toThrow(withCode("TENANT_NOT_FOUND"));
      await expect(store.keys.create({ tenant: id })).rejects.toThrow(withCode("TENANT_NOT_FOUND"));
    }
  });

  test("refuses tenants that are none, and says where", async () => {
    const { store } = await place.store();
    for (const [tenant, where] of WRONG) {
      const invalid = { code: "CONFIG_INVALID", message: expect.stringContaining(where) };
      await expect(store.tenants.create(tenant)).rejects.toThrow(expect.objectContaining(invalid));
    }
    expect(await store.tenants.list()).toEqual([]);
  });

  describe("keys", () => {
    test("let in, as whom they were made for, and nobody else", async () => {
      const { store } = await place.store();
      await store.tenants.create({ id: "acme", weight: 3, limits: { maxConcurrent: 2 } });
      const { key, secret } = await store.keys.create({ tenant: "acme" }, { label: "web" });
      const admin = await store.keys.create({ admin: true });
      expect(secret).toMatch(/^mk_[0-9A-Za-z]{43}$/);
      expect(await store.authenticate(secret)).toEqual({
        tenant: "acme",
        keyId: key.id,
        role: "tenant",
        weight: 3,
        limits: { maxConcurrent: 2 },
      });
      expect(await store.authenticate(admin.secret)).toMatchObject({ tenant: "admin", role: "admin" });
      const wrong = `${secret.slice(0, -1)}${secret.endsWith("x") ? "y" : "x"}`;
      for (const other of [
        wrong,
        "",
        "mk_",
        key.id,
        key.prefix,
        `${secret} `,
        secret.toLowerCase(),
        "mk_".padEnd(46, "0"),
      ]) {
        expect(await store.authenticate(other)).toBeUndefined();
        expect(await store.authenticate(other)).toBeUndefined(); // as remembered
      }
    });

    test("are different each time and hold 256 bits", async () => {
      const { store } = await place.store();
      const secrets = new Set<string>();
      const lastDigits = new Set<string>();
      for (let i = 0; i < 60; i++) {
        const { secret } = await store.keys.create({ admin: true });
        secrets.add(secret);
        lastDigits.add(secret[20]!);
      }
      expect(secrets.size).toBe(60);
      expect(lastDigits.size).toBeGreaterThan(20);
    });

    test("end at their expiry, at once when revoked, and with their tenant", async () => {
      const { store, clock } = await place.store();
      await store.tenants.create({ id: "acme" });
      const make = (expiresAt?: Date) => store.keys.create({ tenant: "acme" }, { expiresAt });
      const expiring = await make(new Date(clock.time + 60_000));
      const revoked = await make();
      const kept = await make();
      const lets = async (made: { secret: string }) => (await store.authenticate(made.secret)) !== undefined;
      for (const made of [expiring, revoked, kept]) expect(await lets(made)).toBe(true);
      clock.pass(59.999);
      expect(await lets(expiring)).toBe(true);
      clock.pass(0.001);
      expect(await lets(expiring)).toBe(false);
      const first = await store.keys.revoke(revoked.key.id);
      expect(await lets(revoked)).toBe(false);
      clock.pass(5);
      expect(await store.keys.revoke(revoked.key.id)).toEqual(first);
      await store.tenants.update("acme", { disabled: true });
      expect(await lets(kept)).toBe(false);
      await store.tenants.update("acme", { disabled: false, weight: 7 });
      expect(await store.authenticate(kept.secret)).toMatchObject({ weight: 7 });
      await store.tenants.remove("acme");
      expect(await lets(kept)).toBe(false);
      expect(await store.keys.list()).toEqual([]);
      await expect(make(new Date(clock.time))).rejects.toThrow(withCode("CONFIG_INVALID"));
      await expect(store.keys.revoke(kept.key.id)).rejects.toThrow(withCode("KEY_NOT_FOUND"));
    });

    test("asked for while they are revoked are not remembered as valid", async () => {
      const { store } = await place.store();
      for (let i = 0; i < 20; i++) {
        const { key, secret } = await store.keys.create({ admin: true });
        await Promise.all([store.authenticate(secret), store.keys.revoke(key.id), store.authenticate(secret)]);
        expect(await store.authenticate(secret)).toBeUndefined();
      }
    });

    test("are on disk as hashes only, and their last use to a minute", async () => {
      const location = await place.lasting();
      let time = Date.parse("2026-03-01T12:00:00Z");
      const now = () => time;
      let secret: string;
      {
        await using store = await openStore(location, { now });
        const created = await store.keys.create({ admin: true }, { label: "ops" });
        secret = created.secret;
        expect(created.key).toMatchObject({ lastUsedAt: null, revokedAt: null, label: "ops" });
        expect(created.key.prefix).toBe(secret.slice(0, 9));
        const lastUse = async () => (await store.keys.list("admin"))[0]!.lastUsedAt?.getTime();
        for (const [passes, written] of [
          [0, 0],
          [30, 0],
          [31, 61],
          [10, 61],
        ] as const) {
          // biome-ignore format: one line
          time += passes * 1000;
          await store.authenticate(secret);
          await store.flush();
          expect(await lastUse()).toBe(Date.parse("2026-03-01T12:00:00Z") + written * 1000);
        }
      }
      await using opened = await place.reopen(location);
      const [row] = await opened.database.select().from(keys);
      expect(row!.hash).toBe(createHash("sha256").update(secret).digest("hex"));
      expect(row!.lastUsedAt!.getTime()).toBe(time); // at the end also what was used a moment ago
      expect(JSON.stringify(row)).not.toContain(secret.slice(9));
    });
  });

  test("a store is unclaimed until the first tenant or key, for ever", async () => {
    const { store } = await place.store();
    expect(await store.unclaimed()).toBe(true);
    const open = { tenant: "default", keyId: "open", role: "tenant", weight: 1, limits: {} };
    expect(await store.openPrincipal()).toEqual(open);
    expect(await store.openPrincipal()).toEqual(open);
    expect(await store.unclaimed()).toBe(true);
    const { key } = await store.keys.create({ admin: true });
    await store.keys.revoke(key.id);
    expect(await store.unclaimed()).toBe(false);
    const other = (await place.store()).store;
    await other.tenants.create({ id: "acme" });
    expect(await other.unclaimed()).toBe(false);
  });
});
