/** @file Opens what most commands work on: a backbone, an adapter if one is named, and an engine over both. */
import { Engine, type EngineOptions } from "../generation/index.ts";
import { Adapter } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { configureRuntime, type DeviceName, requireDevice } from "../runtime/index.ts";

export interface OpenOptions {
  readonly model: string;
  readonly adapter?: string | undefined;
  readonly weights?: "float32" | "int8" | "int4" | undefined;
  readonly threads?: number | undefined;
  readonly device?: DeviceName | undefined;
}

/** Disposes engine, adapter and backbone, in this order. */
export interface Opened extends Disposable {
  readonly backbone: Backbone;
  readonly adapter: Adapter | undefined;
  readonly engine: Engine;
}

/** @param engineOptions as of `Engine.create`, or what makes them of the adapter */
export async function open(
  options: OpenOptions,
  engineOptions: EngineOptions | ((adapter: Adapter | undefined) => EngineOptions) = {},
): Promise<Opened> {
  if (options.threads !== undefined) configureRuntime({ threads: options.threads });
  const { device } = options;
  if (device !== undefined) requireDevice(device);
  const owned: Disposable[] = [];
  const own = <T extends Disposable>(thing: T): T => {
    owned.unshift(thing);
    return thing;
  };
  const dispose = () => {
    for (const thing of owned.splice(0)) thing[Symbol.dispose]();
  };
  try {
    const backbone = own(await Backbone.load(options.model, options.weights ? { weights: options.weights } : {}));
    const adapter = options.adapter === undefined ? undefined : own(Adapter.load(options.adapter, backbone.config));
    const engine = own(
      Engine.create(backbone, {
        device,
        ...(typeof engineOptions === "function" ? engineOptions(adapter) : engineOptions),
      }),
    );
    return { backbone, adapter, engine, [Symbol.dispose]: dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}
