/** @file Builds the studio into dist/studio, compressed beside each file, so that the server only sends what is there. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

const outDir = join(import.meta.dirname, "../dist/studio");

/** `.br` and `.gz` beside each text; the server picks what a browser takes. */
function compressed(): Plugin {
  return {
    name: "compressed",
    closeBundle() {
      for (const file of readdirSync(outDir, { recursive: true, encoding: "utf8" })) {
        if (!/\.(js|css|html|svg)$/.test(file)) continue;
        const path = join(outDir, file);
        const text = readFileSync(path);
        writeFileSync(`${path}.br`, brotliCompressSync(text));
        writeFileSync(`${path}.gz`, gzipSync(text));
      }
    },
  };
}

export default defineConfig({
  root: import.meta.dirname,
  base: "/studio/",
  build: {
    outDir,
    emptyOutDir: true,
    target: "es2022",
    // Nothing inline: the pages' content security policy allows files of this server only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 400,
    rolldownOptions: {
      // `"use client"` in libraries is for frameworks that render on servers.
      onLog: (level, log, handle) => {
        if (log.code !== "MODULE_LEVEL_DIRECTIVE") handle(level, log);
      },
    },
  },
  plugins: [compressed()],
  // `npm run studio:dev` against a server on its usual port.
  server: { proxy: { "^/(v1|admin|studio/v1)/": "http://127.0.0.1:8000" } },
});
