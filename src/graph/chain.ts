/** @file Neighbouring nodes of milora's own operators as one node: threads then wait for each other, not for the runtime. */
import { create } from "@bufbuild/protobuf";
import { AttributeProto_AttributeType, AttributeProtoSchema, type NodeProto, NodeProtoSchema } from "onnx-buf";
import { OPERATOR_DOMAIN } from "../runtime/index.ts";
import type { Shape } from "./shape.ts";

/** What the operator `Chain` knows: the numbers of a step are its code, its attributes, inputs and outputs in this order. */
const STEPS: Readonly<
  Record<string, { code: number; attributes: readonly string[]; inputs: number; outputs: number }>
> = {
  Linear: { code: 0, attributes: ["K", "N", "bits", "block_size", "next_K"], inputs: 7, outputs: 1 },
  Attention: {
    code: 1,
    attributes: ["num_heads", "kv_num_heads", "head_dim", "rotary_pairs", "local_window_size", "scale", "halves"],
    inputs: 8,
    outputs: 3,
  },
  Gated: { code: 2, attributes: ["N"], inputs: 1, outputs: 1 },
  AddNorm: { code: 3, attributes: ["N", "epsilon"], inputs: 3, outputs: 2 },
};

/** Where a step finds a tensor: nowhere, among inputs or outputs of the chain, or `place` columns into its own memory. */
const PLACE = { none: 0n, input: 1n << 40n, output: 2n << 40n, own: 3n << 40n } as const;

/** Rows and columns of a value, where it has such. */
export type SizesOf = (name: string) => { readonly rows: Shape[number]; readonly columns: number } | undefined;

/**
 * Puts neighbours together, reshapes between them included.
 * @param nodes in an order in which they can be computed
 * @param kept names of values that are outputs of the model
 * @param sizesOf of a value, seen as a matrix
 */
export function mergeChains(nodes: readonly NodeProto[], kept: ReadonlySet<string>, sizesOf: SizesOf): NodeProto[] {
  const merged: NodeProto[] = [];
  const users = usersOf(nodes);
  let run: NodeProto[] = [];
  const close = (): void => {
    // Reshapes at the end have nothing after them that they are for.
    const tail = run.splice(run.findLastIndex(({ domain }) => domain === OPERATOR_DOMAIN) + 1);
    merged.push(...(run.length > 1 ? new Chain(run, kept, users, sizesOf).nodes() : run), ...tail);
    run = [];
  };
  for (const node of nodes) {
    if (run.length > 0 ? joins(node, run, sizesOf) : isStep(node)) run.push(node);
    else {
      close();
      if (isStep(node)) run.push(node);
      else merged.push(node);
    }
  }
  close();
  return merged;
}

const isStep = ({ domain, opType }: NodeProto): boolean => domain === OPERATOR_DOMAIN && opType in STEPS;

/** Nodes that read a value, by its name. */
function usersOf(nodes: readonly NodeProto[]): Map<string, Set<NodeProto>> {
  const users = new Map<string, Set<NodeProto>>();
  for (const node of nodes) {
    for (const name of node.input) users.set(name, (users.get(name) ?? new Set()).add(node));
  }
  return users;
}

/** Whether a node goes on with what a chain has: a step over the same rows, or a reshape of one of its values. */
function joins(node: NodeProto, run: readonly NodeProto[], sizesOf: SizesOf): boolean {
  const rows = sizesOf(run[0]!.output[0]!)?.rows;
  if (isStep(node)) return rows !== undefined && sizesOf(node.output[0]!)?.rows === rows;
  const isReshape = node.domain === "" && node.opType === "Reshape";
  return isReshape && run.some(({ output }) => output.includes(node.input[0]!));
}

class Chain {
  readonly #run: readonly NodeProto[];
  readonly #sizesOf: SizesOf;
  /** Reshapes for others than its steps. */
  readonly #reshapes: readonly NodeProto[];
  /** Whether others than its steps read a value. */
  readonly #isOutput: (name: string) => boolean;
  readonly #inputs: string[] = [];
  readonly #outputs: string[] = [];
  /** Names of values that are another seen in another shape. */
  readonly #aliases = new Map<string, string>();
  readonly #places = new Map<string, bigint>();
  /** Columns of its own memory that are free, by their number. */
  readonly #free = new Map<number, bigint[]>();
  #columns = 0n;

  constructor(
    run: readonly NodeProto[],
    kept: ReadonlySet<string>,
    users: ReadonlyMap<string, ReadonlySet<NodeProto>>,
    sizesOf: SizesOf,
  ) {
    this.#run = run;
    this.#sizesOf = sizesOf;
    const inside = new Set(run);
    this.#isOutput = (name) => kept.has(name) || [...(users.get(name) ?? [])].some((user) => !inside.has(user));
    this.#reshapes = run.filter((node) => !isStep(node) && this.#isOutput(node.output[0]!));
    for (const node of this.#reshapes) inside.delete(node);
  }

  nodes(): NodeProto[] {
    const steps: bigint[] = [];
    const last = this.#lastUses();
    for (const [at, node] of this.#run.entries()) {
      if (!isStep(node)) continue;
      const { code, attributes, inputs, outputs } = STEPS[node.opType]!;
      const given = Array.from({ length: inputs }, (_, i) => this.#place(node.input[i] ?? ""));
      const made = Array.from({ length: outputs }, (_, i) => this.#make(node.output[i] ?? ""));
      steps.push(BigInt(code), ...attributes.map((name) => attributeOf(node, name)), ...given, ...made);
      for (const name of last.get(at) ?? []) this.#release(name);
    }
    const int = (name: string, i: bigint) =>
      create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INT, i });
    const chain = create(NodeProtoSchema, {
      name: `${this.#run[0]!.name}…`,
      opType: "Chain",
      domain: OPERATOR_DOMAIN,
      input: this.#inputs,
      output: this.#outputs,
      attribute: [
        create(AttributeProtoSchema, { name: "steps", type: AttributeProto_AttributeType.STRING, s: bytesOf(steps) }),
        int("first", BigInt(this.#sizesOf(this.#run[0]!.input[0]!)!.columns)),
        int("columns", this.#columns),
      ],
    });
    return [chain, ...this.#reshapes];
  }

  /** Values of its own memory by the step that is the last to need them. */
  #lastUses(): Map<number, string[]> {
    const last = new Map<string, number>();
    for (const [at, node] of this.#run.entries()) {
      if (!isStep(node)) this.#aliases.set(node.output[0]!, this.#source(node.input[0]!));
      for (const name of [...node.input, ...node.output]) last.set(this.#source(name), at);
    }
    const byStep = new Map<number, string[]>();
    for (const [name, at] of last) byStep.set(at, [...(byStep.get(at) ?? []), name]);
    return byStep;
  }

  #source(name: string): string {
    return this.#aliases.get(name) ?? name;
  }

  #place(name: string): bigint {
    if (name === "") return PLACE.none;
    const source = this.#source(name);
    let place = this.#places.get(source);
    if (place === undefined) {
      place = PLACE.input + BigInt(this.#inputs.push(source) - 1);
      this.#places.set(source, place);
    }
    return place;
  }

  #make(name: string): bigint {
    if (name === "") return PLACE.none;
    let place: bigint;
    if (this.#isOutput(name)) place = PLACE.output + BigInt(this.#outputs.push(name) - 1);
    else {
      const { columns } = this.#sizesOf(name)!;
      const free = this.#free.get(columns)?.pop();
      place = free ?? PLACE.own + this.#columns;
      if (free === undefined) this.#columns += BigInt(columns);
    }
    this.#places.set(name, place);
    return place;
  }

  #release(name: string): void {
    const place = this.#places.get(name);
    if (place === undefined || place < PLACE.own) return;
    const { columns } = this.#sizesOf(name)!;
    this.#free.set(columns, [...(this.#free.get(columns) ?? []), place]);
  }
}

const bytesOf = (numbers: readonly bigint[]) => new Uint8Array(BigInt64Array.from(numbers).buffer);

/** A whole number, or the bits of a float32. */
function attributeOf(node: NodeProto, name: string): bigint {
  const attribute = node.attribute.find((one) => one.name === name);
  if (!attribute) return 0n;
  if (attribute.type !== AttributeProto_AttributeType.FLOAT) return attribute.i ?? 0n;
  return BigInt(new Uint32Array(Float32Array.of(attribute.f ?? 0).buffer)[0]!);
}
