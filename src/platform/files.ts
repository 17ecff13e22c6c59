// SPDX-License-Identifier: Apache-2.0
// Small files of our own (receipts, journals, records): written whole or not at all, read with a limit.

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { errnoOf, fromNodeError } from "./node-errors.ts";

/** The file is complete on disk under its final name, or the old one stands. */
export function writeWhole(file: string, text: string | Buffer, mode = 0o600): void {
  const temporary = `${file}.${randomBytes(6).toString("hex")}.tmp`;
  try {
    makeFolders(path.dirname(file), 0o700);
    const handle = fs.openSync(temporary, "wx", mode);
    try {
      fs.writeFileSync(handle, text);
      // Before the rename, or a crash can leave an empty file under the final name.
      fs.fsyncSync(handle);
    } finally {
      fs.closeSync(handle);
    }
    fs.renameSync(temporary, file);
  } catch (error) {
    fs.rmSync(temporary, { force: true });
    throw fromNodeError(error, `write "${file}"`);
  }
}

/** The file's bytes; null when it does not exist. @throws RelightError when it is larger than `bytesMax`. */
export function readSmall(file: string, bytesMax: number): Buffer | null {
  try {
    const handle = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW);
    try {
      const { size } = fs.fstatSync(handle);
      if (size > bytesMax) throw fromNodeError(new Error(`${size} bytes`), `read "${file}"`);
      return fs.readFileSync(handle);
    } finally {
      fs.closeSync(handle);
    }
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    throw fromNodeError(error, `read "${file}"`);
  }
}

/**
 * Makes a folder and those above it. @throws what the system said of the first that could not be made:
 * Node's own recursive mkdir says ENOENT for a read-only file system.
 */
export function makeFolders(folder: string, mode = 0o777): void {
  try {
    fs.mkdirSync(folder, { recursive: true, mode });
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
    let missing = path.resolve(folder);
    while (!fs.existsSync(path.dirname(missing))) missing = path.dirname(missing);
    fs.mkdirSync(missing, mode);
    throw error;
  }
}

/** Names in a folder, sorted; empty when it does not exist. */
export function listNames(folder: string): string[] {
  try {
    return fs.readdirSync(folder).sort();
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return [];
    throw fromNodeError(error, `list "${folder}"`);
  }
}
