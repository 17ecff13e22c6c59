// SPDX-License-Identifier: Apache-2.0
// Digests of files on disk, one chunk in memory at a time.

import fs from "node:fs";
import { blake3Hex, chunkedDigest, type Digest, type Hex32, wholeDigest } from "../core/digest.ts";
import { chunkBytes } from "../core/pieces.ts";

export interface HashedFile {
  readonly digest: Digest;
  /** Empty for a file of one chunk. */
  readonly chunks: readonly Hex32[];
}

/**
 * The digest of the first `size` bytes; null when the file is shorter: it was cut while it was read.
 * @param buffer at least a chunk long; overwritten
 */
export function hashHandle(handle: number, size: number, buffer: Buffer): HashedFile | null {
  const chunks = hashChunks(handle, { offset: 0, length: size }, buffer);
  return chunks === null ? null : hashedFile(chunks);
}

/** What a file is that has these chunks, one at least. */
export function hashedFile(chunks: readonly Hex32[]): HashedFile {
  const [first] = chunks;
  if (chunks.length === 1 && first !== undefined) return { digest: wholeDigest(first), chunks: [] };
  return { digest: chunkedDigest(chunks), chunks };
}

/**
 * The digest of each chunk of a range that begins with one; null when the file ends before. An empty
 * range is one chunk.
 * @param buffer at least a chunk long; overwritten
 */
export function hashChunks(
  handle: number,
  range: { readonly offset: number; readonly length: number },
  buffer: Buffer,
): Hex32[] | null {
  const chunks: Hex32[] = [];
  for (let done = 0; done < range.length || chunks.length === 0; done += chunkBytes) {
    const length = Math.min(chunkBytes, range.length - done);
    const offset = range.offset + done;
    if (readExactly(handle, buffer, { offset, length }) !== length) return null;
    chunks.push(blake3Hex(buffer.subarray(0, length)));
  }
  return chunks;
}

/** The digest of a file that has these bytes. */
export function hashBytes(bytes: Buffer): HashedFile {
  const [first = Buffer.alloc(0), ...rest] = chunksOf(bytes);
  if (rest.length === 0) return { digest: wholeDigest(blake3Hex(first)), chunks: [] };
  const chunks = [first, ...rest].map(blake3Hex);
  return { digest: chunkedDigest(chunks), chunks };
}

/** The digest of a whole file; null when it changed its length meanwhile. A link is not followed. */
export function hashPath(file: string): HashedFile | null {
  const handle = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW);
  try {
    return hashHandle(handle, fs.fstatSync(handle).size, Buffer.allocUnsafe(chunkBytes));
  } finally {
    fs.closeSync(handle);
  }
}

function chunksOf(bytes: Buffer): Buffer[] {
  const chunks: Buffer[] = [];
  for (let offset = 0; offset < bytes.length; offset += chunkBytes)
    chunks.push(bytes.subarray(offset, offset + chunkBytes));
  return chunks;
}

function readExactly(
  handle: number,
  buffer: Buffer,
  range: { offset: number; length: number },
): number {
  let done = 0;
  while (done < range.length) {
    const read = fs.readSync(handle, buffer, done, range.length - done, range.offset + done);
    if (read === 0) break;
    done += read;
  }
  return done;
}
