/** @file `milora methods`: the methods there are, and how many parameters each has on a backbone. */
import { type Command, Option } from "commander";
import { type MethodRow, PAPER_SHAPE, parameterTable } from "../../methods/index.ts";
import { readBackboneConfig, SHAPES, type ShapeName } from "../../models/index.ts";
import { examples, jsonFlag } from "../flags.ts";
import { grouped, paint, print, printJson, table } from "../terminal.ts";

interface Flags {
  readonly shape: ShapeName;
  readonly model?: string;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  const shape = new Option("--shape <name>", "the backbone: a known model").choices(Object.keys(SHAPES));
  examples(
    command
      .addOption(shape.default(PAPER_SHAPE))
      .option("--model <dir>", "or a model directory")
      .addOption(jsonFlag())
      .action(list),
    ["milora methods", "milora methods --shape smollm2-135m", "milora methods --model assets/tiny-llama --json"],
  );
}

function list(flags: Flags): void {
  const backbone = flags.model === undefined ? SHAPES[flags.shape] : readBackboneConfig(flags.model);
  const shape = flags.model ?? flags.shape;
  const rows = parameterTable(backbone, shape === PAPER_SHAPE);
  if (flags.json) printJson({ shape, methods: rows.map(described) });
  else show(shape, rows);
}

function described({ method, tunable, activated, paper }: MethodRow): object {
  const { name, peftType, properties } = method;
  const { routed, mergeable } = properties;
  return { method: name, peft_type: peftType, routed, mergeable, tunable, activated, paper };
}

function show(shape: string, rows: readonly MethodRow[]): void {
  const compared = rows.some(({ paper }) => paper);
  print(`parameters of each method on ${paint("bold", shape)}, at the paper's settings\n`);
  const millions = (n: number | undefined) => (n === undefined ? "–" : `${n.toFixed(1)}`);
  const cells = rows.map(({ method, tunable, activated, paper }) => [
    method.name,
    grouped(tunable.total),
    grouped(activated.total),
    ...(compared ? [millions(paper?.tunable), millions(paper?.activated)] : []),
    method.properties.mergeable ? "yes" : "no",
  ]);
  const paperColumns = compared ? ["paper, M", "activated, M"] : [];
  print(table(["method", "tunable", "activated at most", ...paperColumns, "mergeable"], cells));
  const notes = rows.flatMap(({ method, paper }) => {
    const without = paper?.without?.length ? [`it leaves out ${paper.without.join(" and ")}`] : [];
    const parts = [...without, ...(paper?.remark ? [paper.remark] : [])];
    return parts.length ? [`${method.name}: ${parts.join("; ")}`] : [];
  });
  if (notes.length) print(`\nwhere the paper counts something else:\n  ${notes.join("\n  ")}`);
}
