// SPDX-License-Identifier: Apache-2.0
// What is known of a folder's files from an earlier look: the digests of each, with the size, time and
// inode that it then had. Kept in the state folder, so that a checkpoint of 100 GB is hashed once and not
// at every start; a file whose stamp has changed is unknown.

import path from "node:path";
import { z } from "zod";
import { blake3Hex, isDigest, isHex32 } from "../core/digest.ts";
import { MiB } from "../core/units.ts";
import { readSmall, writeWhole } from "../platform/files.ts";
import { manifestLimits } from "./manifest.ts";
import type { SealedFile } from "./seal.ts";

const recordBytesMax = 256 * MiB;

const entryShape = z.strictObject({
  path: z.string().max(4_096),
  mode: z.union([z.literal(0o644), z.literal(0o755)]),
  size: z.int().min(0).max(manifestLimits.fileBytesMax),
  mtimeNs: z.string().regex(/^-?\d{1,20}$/),
  inode: z.string().regex(/^\d{1,20}$/),
  digest: z.string().refine(isDigest),
  chunks: z.array(z.string().refine(isHex32)),
});
const recordShape = z.strictObject({
  format: z.literal("relight.digests.v1"),
  root: z.string(),
  files: z.array(entryShape).max(manifestLimits.filesMax),
});

/** By relative path. */
export type DigestRecord = ReadonlyMap<string, SealedFile>;

/** Empty when there is none, or what is there cannot be read: everything is then hashed again. */
export function readDigestRecord(stateFolder: string, root: string): DigestRecord {
  try {
    const bytes = readSmall(recordFile(stateFolder, root), recordBytesMax);
    if (bytes === null) return new Map();
    const record = recordShape.parse(JSON.parse(bytes.toString("utf8")));
    return new Map(
      record.root === root ? record.files.map((file) => [file.path, sealed(file)]) : [],
    );
  } catch {
    return new Map();
  }
}

/** Replaces the record of this root. @throws RelightError what the disk answered. */
export function writeDigestRecord(
  stateFolder: string,
  root: string,
  files: Iterable<SealedFile>,
): void {
  const record: z.input<typeof recordShape> = {
    format: "relight.digests.v1",
    root,
    files: [...files]
      .filter(({ entry }) => entry.form === "plain")
      .map(({ entry, mtimeNs, inode }) => ({
        path: entry.path,
        mode: entry.mode,
        size: entry.size,
        mtimeNs: String(mtimeNs),
        inode: String(inode),
        digest: entry.digest,
        chunks: [...entry.chunks],
      })),
  };
  writeWhole(recordFile(stateFolder, root), JSON.stringify(record));
}

function recordFile(stateFolder: string, root: string): string {
  return path.join(stateFolder, "digests", `${blake3Hex(Buffer.from(root)).slice(0, 32)}.json`);
}

function sealed(file: z.output<typeof entryShape>): SealedFile {
  const { path: name, mode, size, digest, chunks } = file;
  return {
    entry: { path: name, mode, size, form: "plain", digest, chunks },
    diskSize: size,
    mtimeNs: BigInt(file.mtimeNs),
    inode: BigInt(file.inode),
  };
}
