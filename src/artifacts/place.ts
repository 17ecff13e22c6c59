// SPDX-License-Identifier: Apache-2.0
// Placing verified files from staging under their final names. A file that the target has already is
// kept. Folders are entered by descriptor (through /proc/self/fd), so that a folder replaced by a link
// between check and use cannot redirect a file.

import fs from "node:fs";
import { RelightError } from "../errors.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";

export interface Placed {
  /** Relative paths where the target had a file of its own. */
  readonly kept: readonly string[];
}

/**
 * Moves every file of the folder `staged` into the folder `final`, keeping what is there. Both must be
 * on one file system. May be repeated after a crash: what was placed already is only tidied up.
 * @throws RelightError `target_obstructed` where a file or link stands in a folder's place, or what the
 * disk answered.
 */
export function placeTree(staged: string, final: string): Placed {
  const kept: string[] = [];
  placeFolder({ staged, final, relative: "" }, kept);
  return { kept };
}

interface Pair {
  readonly staged: string;
  readonly final: string;
  readonly relative: string;
}

function placeFolder(pair: Pair, kept: string[]): void {
  const from = openFolder(pair.staged);
  const to = openFolder(pair.final);
  try {
    for (const item of fs.readdirSync(inside(from), { withFileTypes: true })) {
      const relative = pair.relative === "" ? item.name : `${pair.relative}/${item.name}`;
      const next = { staged: inside(from, item.name), final: inside(to, item.name), relative };
      if (!item.isDirectory()) placeFile(next, kept);
      else if (!renameFolder(next)) placeFolder(next, kept);
    }
  } catch (error) {
    throw fromNodeError(error, `install "${pair.relative}"`);
  } finally {
    fs.closeSync(from);
    fs.closeSync(to);
  }
}

/** True when the target had no such folder and now has the staged one whole. */
function renameFolder({ staged, final, relative }: Pair): boolean {
  try {
    // Fails on a folder with anything in it, so that nothing of the target's can be replaced.
    fs.renameSync(staged, final);
    return true;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "ENOTEMPTY" || errno === "EEXIST") return false;
    if (errno === "ENOTDIR")
      throw new RelightError(
        "target_obstructed",
        `Cannot install "${relative}": a file or link stands in its place`,
      );
    throw error;
  }
}

function placeFile({ staged, final, relative }: Pair, kept: string[]): void {
  try {
    // link(2) never replaces: a file that the target compiled meanwhile stays.
    fs.linkSync(staged, final);
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
    // After a crash between link and unlink the final file is the staged one.
    if (!isSameFile(staged, final)) kept.push(relative);
  }
  fs.unlinkSync(staged);
}

function isSameFile(left: string, right: string): boolean {
  const [a, b] = [fs.lstatSync(left), fs.lstatSync(right)];
  return a.ino === b.ino && a.dev === b.dev;
}

function openFolder(folder: string): number {
  try {
    return fs.openSync(
      folder,
      fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW,
    );
  } catch (error) {
    throw fromNodeError(error, `enter "${folder}"`);
  }
}

function inside(folder: number, name = ""): string {
  return `/proc/self/fd/${folder}/${name}`;
}
