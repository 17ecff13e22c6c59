// SPDX-License-Identifier: Apache-2.0
// Opens and reads what a source has sealed, and notices when it is no longer that. For worker threads:
// the calls are synchronous, because on them pooled synchronous reads are twice as fast as any other.

import fs from "node:fs";
import { chunkBytes } from "../core/pieces.ts";
import type { FileFacts } from "./offer-table.ts";

/** Doubles of today's milliseconds are a quarter of a microsecond apart. */
const mtimeMsTolerance = 0.001;

/** A descriptor, or null when the file is gone, is no plain file, or differs from its stamp. */
export function openOffered(file: FileFacts): number | null {
  let handle: number;
  try {
    handle = fs.openSync(
      file.path,
      fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK,
    );
  } catch {
    // Whatever the reason, this source can not serve the file; the refusal reports it.
    return null;
  }
  if (isAsSealed(handle, file)) return handle;
  fs.closeSync(handle);
  return null;
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
