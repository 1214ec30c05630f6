/** @file The tables and figures there are: whatever the files of studies/ export. */
import { readdirSync } from "node:fs";
import { InputError } from "../../base/index.ts";
import { nearest } from "../../training/index.ts";
import { PRESET_OF, type Preset, REPRODUCE_PRESETS } from "./presets.ts";
import type { Study } from "./study.ts";

const FOLDER = new URL("./studies/", import.meta.url);

/** All, tables before figures. */
export async function loadStudies(): Promise<Study[]> {
  const files = readdirSync(FOLDER).filter((name) => /(?<!\.d|\.test)\.[jt]s$/.test(name));
  const modules = await Promise.all(
    files.map(async (file) => (await import(new URL(file, FOLDER).href)) as { readonly study: Study }),
  );
  const tables = ({ name }: Study) => (name.startsWith("table") ? 0 : 1);
  return modules
    .map(({ study }) => study)
    .sort((a, b) => tables(a) - tables(b) || a.name.localeCompare(b.name, "en", { numeric: true }));
}

function wrong(kind: string, name: string, known: readonly string[]): string {
  const meant = nearest(name, known);
  return `no ${kind} "${name}"${meant === undefined ? "" : `, did you mean "${meant}"?`}; there are ${known.join(", ")}`;
}

/** Those that names stand for, `all` for all. Throws `InputError` FLAG_INVALID naming all that are wrong. */
export async function findStudies(names: readonly string[]): Promise<Study[]> {
  const studies = await loadStudies();
  const known = [...studies.map(({ name }) => name), "all"];
  const problems = names.filter((name) => !known.includes(name)).map((name) => wrong("table or figure", name, known));
  if (problems.length) throw new InputError("FLAG_INVALID", "milora reproduce", problems);
  return names.includes("all") ? studies : studies.filter(({ name }) => names.includes(name));
}

/** Throws `InputError` FLAG_INVALID. */
export function findPreset(name: string): Preset {
  const preset = (PRESET_OF as Readonly<Record<string, Preset>>)[name];
  if (preset) return preset;
  throw new InputError("FLAG_INVALID", "--preset", wrong("preset", name, REPRODUCE_PRESETS));
}
