/** @file TensorBoard's event files: TFRecord framing with masked CRC-32C around `tensorflow.Event` messages. */
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

/** Reflected Castagnoli polynomial; node:zlib has the other CRC-32 only. */
const POLYNOMIAL = 0x82f63b78;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
  return crc;
});

/** CRC-32C (RFC 3720, B.4). */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** TFRecord stores checksums rotated and moved, so that the checksum of data with checksums in it means something. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** A record: length (uint64), checksum of the length, data, checksum of the data; little-endian. */
export function frame(data: Uint8Array): Uint8Array {
  const record = new Uint8Array(data.length + 16);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(data.length), true);
  view.setUint32(8, masked(record.subarray(0, 8)), true);
  record.set(data, 12);
  view.setUint32(12 + data.length, masked(data), true);
  return record;
}

/** Begins a message as the value of a field; `join` ends it. */
function message(writer: BinaryWriter, field: number): BinaryWriter {
  return writer.tag(field, WireType.LengthDelimited).fork();
}

/** `Event`: 1 wall_time (seconds), 2 step, and one of the rest, which `write` adds. */
function event(wallTime: number, step: number, write: (writer: BinaryWriter) => void): Uint8Array {
  const writer = new BinaryWriter().tag(1, WireType.Bit64).double(wallTime);
  if (step !== 0) writer.tag(2, WireType.Varint).int64(step);
  write(writer);
  return writer.finish();
}

/** What every file begins with. */
export function versionEvent(wallTime: number): Uint8Array {
  return event(wallTime, 0, (writer) => writer.tag(3, WireType.LengthDelimited).string("brain.Event:2"));
}

/** Tells a reader to forget all that it has of this directory's steps from `step` on. */
export function startEvent(wallTime: number, step: number): Uint8Array {
  const START = 1; // SessionLog.SessionStatus
  return event(wallTime, step, (writer) => message(writer, 7).tag(1, WireType.Varint).int32(START).join());
}

/** Numbers of a step by tag: `Summary` (5) of `Value` (1) with 1 tag and 2 simple_value, float32. */
export function scalarsEvent(wallTime: number, step: number, values: ReadonlyMap<string, number>): Uint8Array {
  return event(wallTime, step, (writer) => {
    message(writer, 5);
    for (const [tag, value] of values) {
      message(writer, 1).tag(1, WireType.LengthDelimited).string(tag);
      writer.tag(2, WireType.Bit32).float(Math.fround(value)).join();
    }
    writer.join();
  });
}

/** Markdown for the text dashboard, as PyTorch's `add_text` writes it: `Value` with 9 metadata and 8 tensor [1]. */
export function textEvent(wallTime: number, step: number, tag: string, text: string): Uint8Array {
  const DT_STRING = 7;
  return event(wallTime, step, (writer) => {
    message(message(writer, 5), 1).tag(1, WireType.LengthDelimited).string(`${tag}/text_summary`);
    message(writer, 8).tag(1, WireType.Varint).int32(DT_STRING); // TensorProto: 1 dtype, 2 tensor_shape, 8 string_val
    message(message(writer, 2), 2).tag(1, WireType.Varint).int64(1).join().join();
    writer.tag(8, WireType.LengthDelimited).string(text).join();
    message(message(writer, 9), 1).tag(1, WireType.LengthDelimited).string("text").join().join(); // plugin_data
    writer.join().join();
  });
}
