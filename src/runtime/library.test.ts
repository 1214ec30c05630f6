/** @file The shared library: found, or a message that says what to do. */
import { mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, describe, expect, it } from "vitest";
import { libraryPath, loadLibrary } from "./library.ts";

afterEach(() => {
  delete process.env.MILORA_ORT_LIBRARY;
});

describe("the library of ONNX Runtime", () => {
  it("comes from the installed package, or from where the environment says", () => {
    const installed = libraryPath();
    expect(installed).toContain("onnxruntime-node");
    process.env.MILORA_ORT_LIBRARY = installed;
    expect(loadLibrary()).toMatchObject({ path: installed, version: expect.stringMatching(/^1\.\d+\.\d+$/) });
  });

  it.runIf(process.platform === "linux")("stays mapped when its object is collected", async () => {
    const { path } = loadLibrary();
    setFlagsFromString("--expose-gc");
    for (let round = 0; round < 4; round++) {
      (runInNewContext("gc") as () => void)();
      await new Promise((resolve) => setTimeout(resolve, 5)); // finalizers are tasks of the event loop
    }
    expect(readFileSync("/proc/self/maps", "utf8")).toContain(realpathSync(path));
  });

  it("is an error that names the path when missing or no library", () => {
    const directory = mkdtempSync(join(tmpdir(), "milora-library-"));
    try {
      const file = join(directory, "libonnxruntime.so");
      process.env.MILORA_ORT_LIBRARY = file;
      const missing = { code: "LIBRARY_MISSING", exitCode: 2, message: expect.stringContaining(file) };
      expect(() => loadLibrary()).toThrow(expect.objectContaining(missing) as Error);
      writeFileSync(file, "not a library");
      expect(() => loadLibrary()).toThrow(expect.objectContaining(missing) as Error);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});
