/** @file Commands of who has no home and no name, as a container's user that is only a number. */
import { execFile } from "node:child_process";
import { statSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { root, tiny } from "./milora.ts";

const NOBODY = 54_321;

/** Only root can become somebody else, who has to reach the project then. */
function canBecome(): boolean {
  if (process.platform !== "linux" || process.getuid?.() !== 0) return false;
  for (let path = root; ; path = dirname(path)) {
    if ((statSync(path).mode & 0o005) !== 0o005) return false;
    if (path === dirname(path)) return true;
  }
}

test.runIf(canBecome())("a command needs neither", async () => {
  const settings = { cwd: root, uid: NOBODY, gid: NOBODY, env: { PATH: process.env.PATH } };
  const node = ["-e", "try { require('node:os').homedir() } catch { console.log('none') }"];
  expect((await promisify(execFile)(process.execPath, node, settings)).stdout).toBe("none\n");
  const args = ["generate", "--model", tiny, "--prompt", "Once", "--max-new-tokens", "2", "--json"];
  const { stdout } = await promisify(execFile)(process.execPath, [join(root, "dist/cli/main.js"), ...args], settings);
  expect(JSON.parse(stdout)).toBeTypeOf("object");
});
