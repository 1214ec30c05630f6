/** @file Checks the folders that runs are shown of. */
import { statSync } from "node:fs";
import { InputError } from "../../base/index.ts";

/** @throws InputError FILE_UNREADABLE with every one that is no folder */
export function checkFolders(folders: readonly string[]): void {
  const problems = folders.flatMap((folder) => {
    const found = statSync(folder, { throwIfNoEntry: false });
    if (found?.isDirectory()) return [];
    return [`${folder} ${found ? "is no folder" : "is not there; milora train --output makes one"}`];
  });
  if (problems.length) throw new InputError("FILE_UNREADABLE", "folders of runs", problems);
}
