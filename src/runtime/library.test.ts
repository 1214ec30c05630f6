/** @file The shared library: found, or a message that says what to do. */
import { copyFileSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, describe, expect, it } from "vitest";
import { libraryPath, loadLibrary, openLibrary } from "./library.ts";

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

  it.runIf(process.platform === "linux" && process.arch === "x64")(
    "stays mapped when koffi unloads it, as when Node ends",
    () => {
      // Threads of a library may run until the process has ended: without this one short command in a hundred ended with SIGSEGV.
      const directory = realpathSync(mkdtempSync(join(tmpdir(), "milora-library-")));
      try {
        const path = join(directory, "library.so"); // nobody else has loaded this one
        copyFileSync("native/prebuilt/linux-x64.so", path);
        openLibrary(path).unload();
        expect(readFileSync("/proc/self/maps", "utf8")).toContain(path);
      } finally {
        rmSync(directory, { recursive: true });
      }
    },
  );

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
