/** @file Copies of weights in the memory of a device: made once for all sessions there, gone with the last of them. */
import type { DeviceName } from "./devices.ts";
import { handleOf, type Tensor } from "./tensor.ts";

/** A weight on a device; whoever asked for it gives it back. */
export interface DeviceWeight {
  readonly tensor: Tensor;
  release(): void;
}

interface Copy {
  readonly tensor: Tensor;
  users: number;
}

/** By device and weight: what is another view of the same bytes is another weight. */
const copies = new Map<DeviceName, WeakMap<object, Copy>>();

/** @throws RuntimeError DEVICE_UNAVAILABLE, RUNTIME_FAILED when there is not enough memory */
export function deviceWeight(weight: Tensor, device: DeviceName): DeviceWeight {
  if (weight.device === device) return { tensor: weight, release: () => {} };
  let known = copies.get(device);
  if (!known) {
    known = new WeakMap();
    copies.set(device, known);
  }
  const key = handleOf(weight);
  const copy = known.get(key) ?? { tensor: weight.copyTo(device), users: 0 };
  known.set(key, copy);
  copy.users++;
  let released = false;
  return {
    tensor: copy.tensor,
    release() {
      if (released) return;
      released = true;
      if (--copy.users > 0) return;
      known.delete(key);
      copy.tensor.dispose();
    },
  };
}
