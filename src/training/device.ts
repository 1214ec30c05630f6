/** @file What training has on a device other than the CPU: a tensor for each parameter, its gradient and its moments. */
import type { Adapter } from "../methods/index.ts";
import { type DeviceName, Tensor } from "../runtime/index.ts";
import type { Accumulated } from "./gradients.ts";
import type { Group, OptimizerGroup } from "./optimizer.ts";

type Tensors = ReadonlyMap<string, Tensor>;

/** The parts of flat buffers of an adapter's layout that belong to its parameters, by key: views, which see changes. */
export function viewsOf(adapter: Adapter, flat: ReadonlyMap<Group, Tensor>): Tensors {
  return new Map(
    adapter.specs.map(({ key, shape, group }) => [key, flat.get(group)!.view(adapter.offsets(group).get(key)!, shape)]),
  );
}

export function copiesOf(tensors: Tensors, device: DeviceName): Tensors {
  return new Map([...tensors].map(([key, tensor]) => [key, tensor.copyTo(device)]));
}

/** Sets tensors of one device to zero. */
export function setToZero(tensors: readonly Tensor[]): void {
  const [first] = tensors;
  if (!first) return;
  const most = Math.max(...tensors.map(({ size }) => size));
  using zeros = Tensor.allocate("float32", [most], first.device);
  for (const tensor of tensors) {
    using part = zeros.view(0, tensor.shape);
    tensor.copyFrom(part);
  }
}

/** Parameters and moments on a device, and the flat buffers on the CPU that checkpoints and methods see. */
export class DeviceState implements Disposable {
  /** Views of the flat buffers and what is on the device, by what it is and by key. */
  readonly #hosts: Readonly<Record<keyof OptimizerGroup, Tensors>>;
  readonly #copies: Readonly<Record<keyof OptimizerGroup, Tensors>>;
  readonly #parts: ReadonlyMap<Group, readonly OptimizerGroup[]>;
  /** Whether the CPU has what the device has. */
  #pulled = true;

  /** @param groups the flat buffers */
  constructor(accumulated: Accumulated, groups: ReadonlyMap<Group, OptimizerGroup>) {
    const { adapter, device, parameters, gradients } = accumulated;
    const host = (what: keyof OptimizerGroup) =>
      viewsOf(adapter, new Map([...groups].map(([group, tensors]) => [group, tensors[what]])));
    const hosts = {
      parameter: host("parameter"),
      gradient: host("gradient"),
      first: host("first"),
      second: host("second"),
    };
    this.#hosts = hosts;
    this.#copies = {
      parameter: parameters,
      gradient: gradients,
      first: copiesOf(hosts.first, device),
      second: copiesOf(hosts.second, device),
    };
    const flat = (what: keyof OptimizerGroup, key: string): Tensor => {
      const tensor = this.#copies[what].get(key)!;
      return tensor.as("float32", [tensor.size]);
    };
    const parts = new Map<Group, OptimizerGroup[]>([...groups.keys()].map((group) => [group, []]));
    for (const { key, group, shape } of adapter.specs) {
      if (shape.includes(0)) continue; // pruned away
      const [parameter, gradient] = [flat("parameter", key), flat("gradient", key)];
      parts.get(group)!.push({ parameter, gradient, first: flat("first", key), second: flat("second", key) });
    }
    this.#parts = parts;
  }

  /** What the optimizer works on. */
  parts(group: Group): readonly OptimizerGroup[] {
    return this.#parts.get(group)!;
  }

  /** Says that parameters and moments have changed on the device. */
  changed(): void {
    this.#pulled = false;
  }

  /** Brings parameters and moments to the flat buffers, if they have changed. */
  pull(): void {
    if (this.#pulled) return;
    for (const what of ["parameter", "first", "second"] as const) this.#copy(what, "toHost");
    this.#pulled = true;
  }

  /** Takes parameters and moments from the flat buffers. */
  push(): void {
    for (const what of ["parameter", "first", "second"] as const) this.#copy(what, "toDevice");
    this.#pulled = true;
  }

  /** The same for gradients. */
  pullGradients(): void {
    this.#copy("gradient", "toHost");
  }

  #copy(what: keyof OptimizerGroup, way: "toHost" | "toDevice"): void {
    for (const [key, host] of this.#hosts[what]) {
      const copy = this.#copies[what].get(key)!;
      if (way === "toHost") host.copyFrom(copy);
      else copy.copyFrom(host);
    }
  }

  /** What belongs to the gradients stays. */
  [Symbol.dispose](): void {
    const { first, second } = this.#copies;
    const own = [...Object.values(this.#hosts), first, second].flatMap((tensors) => [...tensors.values()]);
    const parts = [...this.#parts.values()].flat().flatMap((part) => Object.values(part) as Tensor[]);
    for (const tensor of [...parts, ...own]) tensor.dispose();
  }
}
