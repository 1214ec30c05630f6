/** @file Devices: the CPU always works, another one works or says what it lacks. */
import { describe, expect, it } from "vitest";
import { copyThrough } from "./devices.ts";
import { availableDevices, type DeviceName, Session, Tensor } from "./index.ts";
import { handleOf } from "./tensor.ts";
import { ADD, linear, testModel } from "./testing.ts";

const available = availableDevices();

describe("devices", () => {
  it("always include the CPU", () => {
    expect(available[0]).toBe("cpu");
  });

  const asked = process.env.MILORA_TEST_DEVICE;
  it.skipIf(asked === undefined)("include the one that tests are asked to run on", () => {
    expect(available).toContain(asked);
  });

  it("are unavailable with a reason, or unknown with the list", () => {
    const model = testModel(ADD);
    for (const device of ["webgpu", "cuda"] as const) {
      if (available.includes(device)) continue;
      const unavailable = {
        code: "DEVICE_UNAVAILABLE",
        exitCode: 2,
        message: expect.stringMatching(new RegExp(`^${device} cannot be used here: it needs`)),
      };
      expect(() => Session.create(model, { device })).toThrow(expect.objectContaining(unavailable) as Error);
      expect(() => Tensor.allocate("float32", [1], device)).toThrow(expect.objectContaining(unavailable) as Error);
    }
    const unknown = { code: "DEVICE_UNAVAILABLE", message: expect.stringMatching(/tpu.*cpu, webgpu, cuda/) };
    expect(() => Session.create(model, { device: "tpu" as DeviceName })).toThrow(
      expect.objectContaining(unknown) as Error,
    );
    expect(() => Tensor.allocate("float32", [1], "tpu" as DeviceName)).toThrow(
      expect.objectContaining(unknown) as Error,
    );
  });

  for (const device of available) {
    describe(device, () => {
      it("sees what was written into an input after it was bound, and keeps tensors in its own memory", async () => {
        using session = Session.create(testModel(ADD), { device });
        using a = Tensor.from("float32", [2], Float32Array.of(1, 2));
        using here = Tensor.allocate("float32", [2]);
        using there = Tensor.allocate("float32", [2], device);
        using onto = session.bind().input("a", a).input("b", there).output("y", there);
        using back = session.bind().input("a", a).input("b", there).output("y", here);
        session.run(onto);
        a.data.set([10, 20] as never);
        session.run(onto);
        await session.runAsync(back);
        expect(there.device).toBe(device);
        expect([...here.data]).toEqual([21, 42]);
        using made = session.bind().input("a", a).input("b", a).outputOn("y", device);
        session.run(made);
        using result = made.results().get("y")!;
        expect(result.device).toBe(device);
        session.run(back.input("b", result));
        expect([...here.data]).toEqual([30, 60]);
      });

      it("copies by a model, too, where the runtime has no other way", () => {
        using here = Tensor.from("uint8", [3], Uint8Array.of(1, 2, 3));
        using there = Tensor.allocate("uint8", [3], device);
        using again = Tensor.allocate("uint8", [3], device);
        using back = Tensor.allocate("uint8", [3]);
        for (const [from, to] of [
          [here, there],
          [there, again],
          [again, back],
        ] as const) {
          copyThrough(device, handleOf(from).value, handleOf(to).value);
        }
        expect([...back.data]).toEqual([1, 2, 3]);
      });

      it("uses weights from outside", () => {
        using w = Tensor.from("float32", [2, 2], Float32Array.of(1, 2, 3, 4));
        using session = Session.create(testModel(linear(2, 2)), { device, initializers: new Map([["w", w]]) });
        using x = Tensor.from("float32", [1, 2], Float32Array.of(1, 10));
        const { y } = session.call({ x });
        expect([...y!.data]).toEqual([31, 42]);
        y!.dispose();
        expect(session.sharesInitializers).toBe(true);
      });

      it("has weights once for all sessions, and as long as one of them is open", () => {
        const w = Tensor.from("float32", [2, 2], Float32Array.of(1, 2, 3, 4));
        const make = () => Session.create(testModel(linear(2, 2)), { device, initializers: new Map([["w", w]]) });
        const first = make();
        using second = make();
        first.dispose();
        w.dispose();
        using x = Tensor.from("float32", [1, 2], Float32Array.of(1, 10));
        const { y } = second.call({ x });
        expect([...y!.data]).toEqual([31, 42]);
        y!.dispose();
      });

      it("copies tensors there, on it and back, and shows the same memory in another form", () => {
        using here = Tensor.from("float32", [2, 3], Float32Array.of(1, 2, 3, 4, 5, 6));
        using there = here.copyTo(device);
        using again = there.copyTo(device);
        using flat = again.as("float32", [6]);
        using start = again.view(0, [1, 3]);
        using zeros = Tensor.allocate("float32", [1, 3], device);
        start.copyFrom(zeros);
        using back = flat.copyTo("cpu");
        expect([...back.data]).toEqual([0, 0, 0, 4, 5, 6]);
        using whole = there.copyTo("cpu");
        expect([...whole.data]).toEqual([1, 2, 3, 4, 5, 6]);
        expect(() => there.copyFrom(flat)).toThrow(expect.objectContaining({ code: "SHAPE_MISMATCH" }) as Error);
        using whole64 = Tensor.allocate("int64", [2, 3]);
        expect(() => whole64.copyFrom(there)).toThrow(expect.objectContaining({ code: "DTYPE_MISMATCH" }) as Error);
        if (device === "cpu") return;
        expect(() => there.view(1, [2])).toThrow(expect.objectContaining({ code: "DEVICE_UNAVAILABLE" }) as Error);
        expect(() => there.data).toThrow(expect.objectContaining({ code: "DEVICE_UNAVAILABLE" }) as Error);
      });
    });
  }
});
