/** @file Loading what was installed: as a whole and piece by piece, the same numbers, the same refusals. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, cpSync, existsSync, mkdirSync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { Adapter } from "../../methods/index.ts";
import { Tensor } from "../../runtime/index.ts";
import { digestOfFiles } from "./files.ts";
import { Gate, loadInstalled } from "./load.ts";
import { backbone, fixture, flipByte, temporary } from "./testing.ts";

const gate = new Gate(1);

const PRLIMIT = "/usr/bin/prlimit";

/** Does something while this process can open no file. */
async function withoutHandles(work: () => Promise<void>): Promise<void> {
  const last = openSync("/dev/null", "r");
  const limit = `${PRLIMIT} --pid ${process.pid} --nofile`;
  const script = `before=$(${limit} --noheadings --output=SOFT); ${limit}=${last + 1}: && echo set; read -r _; ${limit}=$before:`;
  const helper = spawn("/bin/sh", ["-c", script], { stdio: ["pipe", "pipe", "inherit"] });
  await once(helper.stdout, "data");
  const taken = [last];
  try {
    for (;;) taken.push(openSync("/dev/null", "r"));
  } catch (error) {
    expect(error).toMatchObject({ code: "EMFILE" });
  }
  try {
    await work();
  } finally {
    helper.stdin.end("\n");
    await once(helper, "close");
    for (const handle of taken) closeSync(handle);
  }
}

/** A copy of the fixture, and what its files should be. */
async function installed(): Promise<{ directory: string; digest: string }> {
  const directory = join(temporary(), "adapter");
  cpSync(fixture, directory, { recursive: true });
  return { directory, digest: await digestOfFiles(directory) };
}

describe.each([
  ["as a whole", undefined],
  ["piece by piece", 0],
])("%s", (_name, whole) => {
  const options = { gate, ...(whole !== undefined && { whole }) };

  test("gives the numbers to whoever prepares them, and keeps them", async () => {
    const { directory, digest } = await installed();
    using expected = Adapter.load(directory, backbone);
    const reserved: number[] = [];
    const seen = new Map<string, Float32Array>();
    using adapter = await loadInstalled(directory, backbone, {
      ...{ ...options, digest },
      reserve: (bytes) => void reserved.push(bytes),
      prepare: async (loaded) => {
        for (const { key } of loaded.specs) seen.set(key, loaded.values(key).slice());
      },
    });
    expect(reserved).toEqual([expected.byteLength]);
    for (const { key } of expected.specs) expect(seen.get(key)).toEqual(expected.values(key));
    expect(adapter.digest).toBe(expected.digest);
  });

  test("what is damaged, or cannot be prepared, leaves no tensor behind", async () => {
    const { directory, digest } = await installed();
    const made: Tensor[] = [];
    const { allocate } = Tensor;
    const spy = vi.spyOn(Tensor, "allocate").mockImplementation((...of) => {
      made.push(allocate.apply(Tensor, of));
      return made.at(-1)!;
    });
    const load = (prepare: (adapter: Adapter) => Promise<void>) =>
      loadInstalled(directory, backbone, { ...options, digest, prepare, reserve() {} });
    const failing = async (adapter: Adapter) => {
      expect(adapter.tensors.size).toBeGreaterThan(0);
      throw new Error("no room");
    };
    await expect(load(failing)).rejects.toThrow("no room");
    expect(made.length).toBeGreaterThan(0);
    expect(made.every(({ disposed }) => disposed)).toBe(true);
    flipByte(join(directory, "adapter_model.safetensors"));
    await expect(load(async () => {})).rejects.toMatchObject({ code: "ADAPTER_CORRUPT" });
    rmSync(join(directory, "adapter_model.safetensors"));
    await expect(load(async () => {})).rejects.toMatchObject({ code: "ADAPTER_CORRUPT" });
    spy.mockRestore();
  });

  test.runIf(existsSync(PRLIMIT))(
    "while no file can be opened it is not called damaged, but asked for again",
    async () => {
      const { directory, digest } = await installed();
      const load = () =>
        loadInstalled(directory, backbone, { ...options, digest, prepare: async () => {}, reserve() {} });
      const lasting = await load();
      await withoutHandles(async () => {
        const error = await load().catch((thrown: unknown) => thrown as Error);
        expect(error).toMatchObject({ code: "ADAPTERS_BUSY", status: 503, retryAfterSeconds: 1 });
        expect((error as Error).message).toMatch(/^(?!.*\/).*too many files are open/);
        if (whole === undefined) expect(() => lasting.tensors).toThrow(expect.objectContaining({ code: "ADAPTERS_BUSY" })); // biome-ignore format: one line
      });
      lasting.dispose();
      (await load()).dispose();
    },
  );

  test("what cannot be read is told without where it lies", async () => {
    const { directory, digest } = await installed();
    rmSync(join(directory, "adapter_model.safetensors"));
    mkdirSync(join(directory, "adapter_model.safetensors"));
    const loaded = loadInstalled(directory, backbone, { ...options, digest, prepare: async () => {}, reserve() {} });
    await expect(loaded).rejects.toMatchObject({ code: "ADAPTER_CORRUPT", message: expect.not.stringContaining(directory) as string }); // biome-ignore format: one line
  });
});

test("numbers that are asked for later come from the file again, if it is still what was installed", async () => {
  const { directory, digest } = await installed();
  const load = () => loadInstalled(directory, backbone, { gate, digest, reserve() {}, prepare: async () => {} });
  using before = await load();
  using after = await load();
  using expected = Adapter.load(directory, backbone);
  const { key } = expected.specs[0]!;
  expect(before.tensors.get(key)!.data).toEqual(expected.values(key));
  flipByte(join(directory, "adapter_model.safetensors"));
  expect(() => after.tensors).toThrow(expect.objectContaining({ code: "ADAPTER_CORRUPT" }));
});
