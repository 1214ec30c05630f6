/** @file What was chosen or dropped, as an archive to be sent: one that is there, or the two files of an adapter, packed. */
import { ustar } from "./ustar.ts";

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const ARCHIVE = /\.(tar|tar\.gz|tgz)$/i;
/** A folder that is dropped by mistake is not read through to its end. */
const MOST_FILES = 2000;
const MOST_DEPTH = 8;

export interface Picked {
  readonly archive: Blob;
  /** A name that it may have. */
  readonly name: string;
  /** What is sent, in words. */
  readonly what: string;
}

export interface FileAt {
  readonly file: File;
  /** Folders and name, `/` between them. */
  readonly path: string;
}

export const filesOf = (list: FileList): FileAt[] =>
  [...list].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/** @throws Error that says what is missing, for whoever chose */
export function pick(files: readonly FileAt[]): Picked {
  const archives = files.filter(({ path }) => ARCHIVE.test(path));
  const configs = files.filter(({ path }) => last(path) === CONFIG);
  if (configs.length > 1) {
    throw new Error(`There are ${configs.length} adapters in it (${configs.map(({ path }) => path).join(", ")}). Choose the folder of one.`); // biome-ignore format: one line
  }
  const [config] = configs;
  if (config) {
    const folder = folderOf(config.path);
    const weights = files.find(({ path }) => last(path) === WEIGHTS && folderOf(path) === folder);
    if (!weights) throw new Error(withoutWeights(files));
    const archive = ustar([
      { name: CONFIG, content: config.file },
      { name: WEIGHTS, content: weights.file },
    ]);
    return { archive, name: nameOf(last(folder)), what: `${CONFIG} and ${WEIGHTS}` };
  }
  const [archive] = archives;
  if (archive && archives.length === 1) {
    const name = last(archive.path);
    return { archive: archive.file, name: nameOf(name.replace(ARCHIVE, "")), what: name };
  }
  if (archives.length > 1) throw new Error("Choose one archive at a time.");
  if (files.length === 0) throw new Error("The folder is empty.");
  throw new Error(`There is no ${CONFIG} in it, and no .tar or .tar.gz.`);
}

function withoutWeights(files: readonly FileAt[]): string {
  const pickle = files.some(({ path }) => last(path) === "adapter_model.bin");
  const text = `There is ${CONFIG}, but no ${WEIGHTS} beside it.`;
  return pickle ? `${text} adapter_model.bin is a pickle, which is never read: save the adapter as safetensors.` : text;
}

const last = (path: string): string => path.slice(path.lastIndexOf("/") + 1);
const folderOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf("/")));

/** What names of adapters may be made of. */
function nameOf(text: string): string {
  return text
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(0, 128);
}

/** The files of what was dropped, folders read through. */
export async function dropped(items: DataTransferItemList): Promise<FileAt[]> {
  // The list is empty after the first pause.
  const found = [...items].map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  const files: FileAt[] = [];
  for (const one of found) {
    if (one instanceof File) files.push({ file: one, path: one.name });
    else if (one) await collect(one, one.name, files, 0);
  }
  return files;
}

async function collect(entry: FileSystemEntry, path: string, into: FileAt[], depth: number): Promise<void> {
  if (into.length >= MOST_FILES || depth > MOST_DEPTH) throw new Error("The folder has too many files in it.");
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    into.push({ file, path });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const inner of some) await collect(inner, `${path}/${inner.name}`, into, depth + 1);
  }
}
