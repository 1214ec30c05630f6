/** @file `milora config`: the JSON Schema of training configs, and whether a file is a good one before hours are spent on it. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Argument, type Command } from "commander";
import { InputError, MiloraError } from "../../base/index.ts";
import { methodOf } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import {
  jsonSchemaOf,
  readConfigFile,
  resolveTrainingConfig,
  type TrainingConfig,
  trainingConfigSchema,
  unknownSettings,
} from "../../training/index.ts";
import { examples, jsonFlag } from "../flags.ts";
import { withoutNulls } from "../settings.ts";
import { note, paint, print, printJson } from "../terminal.ts";

interface Flags {
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .addArgument(
        new Argument("<what>", "schema: print a JSON Schema; check: read a file as train would").choices([
          "schema",
          "check",
        ]),
      )
      .argument("[file]", "with check: a YAML or JSON file")
      .addOption(jsonFlag())
      .action(run),
    ["milora config schema > milora.schema.json", "milora config check configs/demo-subjects-milora.yaml"],
  );
}

function run(what: string, file: string | undefined, flags: Flags): void {
  if (what === "schema") {
    if (file !== undefined) throw new InputError("FLAG_INVALID", "config schema", "takes no file");
    const schema = jsonSchemaOf(trainingConfigSchema);
    print(flags.json ? JSON.stringify(schema) : JSON.stringify(schema, null, 2));
    return;
  }
  if (file === undefined) throw new InputError("FLAG_INVALID", "config check", "needs a file");
  const { config, notes } = check(file);
  if (flags.json) printJson({ valid: true, notes, config });
  else {
    for (const text of notes) note(`${paint("yellow", "note:", process.stderr)} ${text}`);
    print(`${paint("bold", file)} is a valid config: ${config.method} on ${config.model}`);
  }
}

/** Throws `InputError` with all that is wrong; what cannot be known on this machine is a note. */
function check(file: string): { config: TrainingConfig; notes: string[] } {
  const config = resolveTrainingConfig(withoutNulls(readConfigFile(file)), file);
  const method = methodOf(config.method);
  const problems = unknownSettings(method, config.adapter);
  const notes: string[] = [];
  if (existsSync(join(config.model, "config.json"))) {
    try {
      method.newConfig(config.adapter, readBackboneConfig(config.model));
    } catch (error) {
      if (!(error instanceof MiloraError)) throw error;
      problems.push(...(error instanceof InputError ? error.problems.map((p) => `adapter.${p}`) : [error.message]));
    }
  } else notes.push(`model: ${config.model} is not here; whether the adapter fits it was not checked`);
  for (const [field, path] of Object.entries({ train: config.data.train, dev: config.data.dev })) {
    const elsewhere = typeof path !== "string" || /^hf:|[*?{]/.test(path);
    if (!elsewhere && !existsSync(path)) notes.push(`data.${field}: ${path} is not here`);
  }
  if (problems.length) throw new InputError("CONFIG_INVALID", file, problems);
  return { config, notes };
}
