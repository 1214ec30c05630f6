/** @file A parquet file whose damage has no end is given up; the next one is read. */
import { readFileSync } from "node:fs";
import { parquetWriteBuffer } from "hyparquet-writer";
import { expect, test } from "vitest";
import { parquetRows } from "./parquet.ts";

const written = (data: string[], rowGroupSize = [100]): Uint8Array =>
  new Uint8Array(parquetWriteBuffer({ columnData: [{ name: "text", data, type: "STRING" }], rowGroupSize }));

test("files of several groups of rows, one after the other", async () => {
  const many = Array.from({ length: 25 }, (_, i) => `row ${i}`);
  const [first, second] = await Promise.all([parquetRows(written(many, [10])), parquetRows(written(["one"]))]);
  expect(first.map(({ text }) => text)).toEqual(many);
  expect(second).toEqual([{ text: "one" }]);
});

test("a file whose reading would not end is given up, and the next one is read", async () => {
  // Found by fuzzing: a run of a level counts on as long as it makes its array longer.
  const endless = readFileSync("test/fixtures/data/endless.parquet");
  const [given, next] = await Promise.allSettled([parquetRows(endless, 1000), parquetRows(written(["one"]))]);
  expect(given).toMatchObject({ status: "rejected", reason: { message: "no rows within 1 s" } });
  expect(next).toMatchObject({ status: "fulfilled", value: [{ text: "one" }] });
});

test("what is damaged otherwise is told, and the thread stays", async () => {
  await expect(parquetRows(written(["one"]).subarray(0, 30))).rejects.toThrow("footer");
  expect(await parquetRows(written(["two"]))).toEqual([{ text: "two" }]);
});
