/** @file Door of the room `base`: what every room may use. Clocks, errors, atomic files, processes, half-precision numbers, seeded random numbers, sums and means, the version. */
export * from "./clock.ts";
export * from "./errors.ts";
export * from "./files.ts";
export * from "./floats.ts";
export * from "./processes.ts";
export * from "./random.ts";
export * from "./statistics.ts";
export * from "./version.ts";
