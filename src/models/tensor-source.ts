/** @file Where a backbone's weights come from, whatever the file format: tensors by name, read as float32 in pieces. */
import type { QuantizedLinear } from "./quantize.ts";
import type { ByteObserver } from "./safetensors.ts";

/** A tensor as its file describes it. */
export interface SourceTensor {
  readonly shape: readonly number[];
  /** As the file format names it, e.g. `BF16`. */
  readonly storedDType: string;
}

/**
 * The tensors of a checkpoint under the names that its family gives them (`model.layers.0.self_attn.q_proj.weight`),
 * in the layout of Hugging Face checkpoints: linear weights are [out, in], row by row. Opening one has checked all headers.
 */
export interface TensorSource extends Disposable {
  /** The directory or file, for messages. */
  readonly path: string;
  readonly tensors: ReadonlyMap<string, SourceTensor>;
  /** The stored dtypes that `readFloat32` can read. */
  readonly readable: readonly string[];
  /**
   * Reads elements `start` … `start + target.length` of a tensor into `target`, as float32. Pieces are whole rows of
   * the last dimension and are asked for in order; no second copy of the tensor may exist at any time.
   * @param observe sees the stored bytes, in order, as they are read: a model's digest is made of them
   */
  readFloat32(name: string, target: Float32Array, start?: number, observe?: ByteObserver): Float32Array;
  /**
   * Reads a whole linear weight that is stored in blocks like the target's, its levels and scales as they are: nothing
   * is lost. Returns false, having read nothing, where the stored form is another.
   */
  readQuantized?(name: string, target: QuantizedLinear, observe?: ByteObserver): boolean;
}
