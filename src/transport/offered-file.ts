// SPDX-License-Identifier: Apache-2.0
// Opens and reads what a source has sealed, and notices when it is no longer that. For worker threads:
// the calls are synchronous, because on them pooled synchronous reads are twice as fast as any other.

import fs from "node:fs";
import { chunkBytes } from "../core/pieces.ts";
import { errnoOf } from "../platform/node-errors.ts";
import type { FileFacts } from "./offer-table.ts";

/** Doubles of today's milliseconds are a quarter of a microsecond apart. */
const mtimeMsTolerance = 0.001;

/** A descriptor, or null when the file is gone, is no plain file, or differs from its stamp. */
export function openOffered(file: FileFacts): number | null {
  const handle = openUnseen(file.path);
  if (handle === null) return null;
  if (isAsSealed(handle, file)) return handle;
  fs.closeSync(handle);
  return null;
}

/** Without moving the access time, by which an engine's first read of an installed file is known. */
function openUnseen(path: string): number | null {
  const flags = fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK;
  try {
    return fs.openSync(path, flags | fs.constants.O_NOATIME);
  } catch (error) {
    // Only a file's owner may ask for that.
    if (errnoOf(error) === "EPERM") return openPlainly(path, flags);
    // Whatever the reason, this source can not serve the file; the refusal reports it.
    return null;
  }
}

function openPlainly(path: string, flags: number): number | null {
  try {
    return fs.openSync(path, flags);
  } catch {
    return null;
  }
}

/** Reads exactly `length` bytes; false when the file ends before. */
export function readFully(
  handle: number,
  into: Buffer,
  span: { readonly at: number; readonly offset: number; readonly length: number },
): boolean {
  for (let done = 0; done < span.length; ) {
    const got = readSome(handle, into, {
      at: span.at + done,
      offset: span.offset + done,
      length: span.length - done,
    });
    if (got <= 0) return false;
    done += got;
  }
  return true;
}

function readSome(
  handle: number,
  into: Buffer,
  span: { readonly at: number; readonly offset: number; readonly length: number },
): number {
  try {
    return fs.readSync(handle, into, span.at, span.length, span.offset);
  } catch {
    // An unreadable disk and a truncated file are the same to a target: this piece is not to be had.
    return -1;
  }
}

function isAsSealed(handle: number, file: FileFacts): boolean {
  const stats = fs.fstatSync(handle);
  if (!stats.isFile()) return false;
  if (file.stamp === null) return file.size > chunkBytes || stats.size === file.size;
  return (
    stats.size === file.size &&
    Math.abs(stats.mtimeMs - file.stamp.mtimeMs) <= mtimeMsTolerance &&
    stats.ino === file.stamp.inode
  );
}
