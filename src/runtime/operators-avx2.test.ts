/** @file milora's operators with AVX2, as on a machine that has nothing wider. */
import { operatorTests } from "./testing/all-operators.ts";

operatorTests("avx2");
