/** @file Failures of training that are not simply bad input, each with a stable code. */
import { MiloraError } from "../base/index.ts";

export type TrainingErrorCode =
  /** The loss or the gradient's norm is not a number or infinite; parameters and moments are as before the step. */
  | "TRAINING_NOT_FINITE"
  /** A checkpoint belongs to another config, backbone or data set. */
  | "CHECKPOINT_MISMATCH"
  /** A checkpoint's files do not hold what they should. */
  | "CHECKPOINT_INVALID"
  /** Asked to resume where there is nothing to resume from. */
  | "CHECKPOINT_MISSING"
  /** The output directory already holds a run, or another process is training into it. */
  | "RUN_EXISTS"
  /** The output directory cannot be made or written to; a run that was going on can be resumed from its last checkpoint. */
  | "OUTPUT_UNWRITABLE"
  | "TRAINER_CLOSED";

/** A run that cannot begin or go on: `code` says why. */
export class TrainingError extends MiloraError {
  declare readonly code: TrainingErrorCode;

  constructor(code: TrainingErrorCode, message: string, options: { cause?: unknown; exitCode?: number } = {}) {
    super(code, message, options);
  }
}
