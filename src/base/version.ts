/** @file The package's own version. */
import { readFileSync } from "node:fs";

const manifest: unknown = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));

export const version: string = (manifest as { version: string }).version; // same place from src/base and dist/base
