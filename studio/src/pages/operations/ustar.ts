/** @file Packs files into a .tar in the browser, without reading them. */

const BLOCK = 512;

export interface TarEntry {
  /** At most 100 letters of ASCII, and no directory. */
  readonly name: string;
  readonly content: Blob;
}

/** POSIX 1003.1-1988: a head of 512 bytes, the file, zeros to the next 512; two blocks of zeros at the end. */
export function ustar(entries: readonly TarEntry[]): Blob {
  const parts = entries.flatMap(({ name, content }) => [
    headOf(name, content.size),
    content,
    new Uint8Array((BLOCK - (content.size % BLOCK)) % BLOCK),
  ]);
  return new Blob([...parts, new Uint8Array(2 * BLOCK)], { type: "application/x-tar" });
}

function headOf(name: string, size: number): Uint8Array<ArrayBuffer> {
  const head = new Uint8Array(BLOCK);
  const write = (at: number, text: string): void => {
    for (let i = 0; i < text.length; i++) head[at + i] = text.charCodeAt(i);
  };
  const octal = (at: number, value: number, digits: number): void => write(at, value.toString(8).padStart(digits, "0"));
  write(0, name);
  octal(100, 0o644, 7); // mode
  octal(108, 0, 7); // owner
  octal(116, 0, 7); // group
  octal(124, size, 11);
  octal(136, 0, 11); // time
  write(148, " ".repeat(8)); // the sum, for itself
  write(156, "0"); // a file
  write(257, "ustar\x0000");
  const sum = head.reduce((total, byte) => total + byte, 0);
  write(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return head;
}
