/** @file The process in which speed and memory are measured: a request on stdin, the answer on stdout, both JSON. */
import { text } from "node:stream/consumers";
import { measureSpeed, type SpeedRequest } from "./speed.ts";

process.stdout.write(JSON.stringify(await measureSpeed(JSON.parse(await text(process.stdin)) as SpeedRequest)));
