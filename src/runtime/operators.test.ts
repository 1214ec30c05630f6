/** @file milora's operators with the widest instructions of this machine. */
import { operatorTests } from "./testing/all-operators.ts";

operatorTests();
