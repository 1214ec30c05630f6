/** @file The loops that drive a batch: sampling with rows that come and go, and beam search with groups of rows. */
import { RuntimeError } from "../runtime/index.ts";
import type { Batch } from "./batch.ts";
import { BeamSearch } from "./beam.ts";
import type { StreamedToken } from "./request.ts";
import { now, type Sequence } from "./sequence.ts";
import { TextStream } from "./text.ts";
