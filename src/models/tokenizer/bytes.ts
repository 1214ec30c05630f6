/** @file GPT-2's spelling of bytes: printable Latin-1 stands for itself, other bytes for characters from U+0100 on. */

const CHARACTERS: readonly string[] = (() => {
  let moved = 0;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(printable ? byte : 256 + moved++);
  });
})();

const encoder = new TextEncoder();

/** The UTF-8 bytes of a text, each as its character. */
export function byteCharacters(text: string): string {
  let spelled = "";
  for (const byte of encoder.encode(text)) spelled += CHARACTERS[byte];
  return spelled;
}

/** From characters back to bytes. */
export const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = new Map(
  CHARACTERS.map((character, byte) => [character, byte]),
);
