// SPDX-License-Identifier: Apache-2.0
// Secrets on disk: read only when nobody but their owner can, made once even when two processes
// start together. What is in them is the caller's.

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { RelightError } from "../errors.ts";
import { errnoOf, fromNodeError } from "./node-errors.ts";

/**
 * The bytes of a secret; null when there is none.
 * @throws RelightError `key_unsafe` for a link, anything but a regular file, a foreign owner, a file
 *   that group or others may touch, or one larger than `bytesMax`.
 */
export function readPrivate(file: string, bytesMax: number): Buffer | null {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
  let handle: number;
  try {
    // O_NONBLOCK: opening a pipe that stands in the key's place must not wait for its writer.
    handle = fs.openSync(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    if (errnoOf(error) === "ELOOP") return unsafe(file, "it is a link, want a regular file");
    throw fromNodeError(error, `read "${file}"`);
  }
  try {
    // Asked of the open handle, so that nothing can be put in its place in between.
    const { mode, uid, size } = fs.fstatSync(handle);
    if ((mode & fs.constants.S_IFMT) !== fs.constants.S_IFREG)
      return unsafe(file, "it is not a regular file");
    if (uid !== process.geteuid?.()) return unsafe(file, `its owner is user ${uid}, want our own`);
    if ((mode & 0o077) !== 0)
      return unsafe(file, `its mode is ${(mode & 0o777).toString(8)}, want 600`);
    if (size > bytesMax) return unsafe(file, `it has ${size} bytes, want at most ${bytesMax}`);
    return fs.readFileSync(handle);
  } finally {
    fs.closeSync(handle);
  }
}

/**
 * A file that somebody else puts in its place, such as a mounted secret: links are followed, and its
 * owner may be another; null when there is none.
 * @throws RelightError `key_unsafe` for anything but a regular file, one larger than `bytesMax`, and,
 *   unless it `isPublic`, one that everybody may touch.
 */
export function readSecret(
  file: string,
  { bytesMax, isPublic }: { readonly bytesMax: number; readonly isPublic: boolean },
): Buffer | null {
  const { O_RDONLY, O_NONBLOCK } = fs.constants;
  let handle: number;
  try {
    handle = fs.openSync(file, O_RDONLY | O_NONBLOCK);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    throw fromNodeError(error, `read "${file}"`);
  }
  try {
    const { mode, size } = fs.fstatSync(handle);
    if ((mode & fs.constants.S_IFMT) !== fs.constants.S_IFREG)
      return unsafe(file, "it is not a regular file");
    if (!isPublic && (mode & 0o007) !== 0)
      return unsafe(file, `its mode is ${(mode & 0o777).toString(8)}, want 640 or less`);
    if (size > bytesMax) return unsafe(file, `it has ${size} bytes, want at most ${bytesMax}`);
    return fs.readFileSync(handle);
  } finally {
    fs.closeSync(handle);
  }
}

/** Writes a secret unless one stands there already; whichever won is then the one to read. */
export function createPrivate(file: string, bytes: Buffer): void {
  const temporary = `${file}.${randomBytes(6).toString("hex")}.tmp`;
  try {
    fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
    fs.writeFileSync(temporary, bytes, { mode: 0o600, flag: "wx", flush: true });
    // A link fails when the name is taken, a rename would replace the other process's key.
    fs.linkSync(temporary, file);
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw fromNodeError(error, `write "${file}"`);
  } finally {
    fs.rmSync(temporary, { force: true });
  }
}

function unsafe(file: string, reason: string): never {
  throw new RelightError("key_unsafe", `Cannot use "${file}": ${reason}`, { details: { file } });
}
