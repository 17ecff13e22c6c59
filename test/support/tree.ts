// SPDX-License-Identifier: Apache-2.0
// Real files on disk as an offer, for tests of the byte path: contents are random but repeatable.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {
  encodeManifest,
  listPieces,
  type ManifestFile,
  type SealedManifest,
} from "../../src/artifacts/manifest.ts";
import { blake3Hex, chunkedDigest, wholeDigest } from "../../src/core/digest.ts";
import { chunkBytes, PieceSet } from "../../src/core/pieces.ts";
import type { Offer, OfferedFile, Staging } from "../../src/transport/transport.ts";

export interface Tree extends Disposable {
  readonly root: string;
  readonly manifest: SealedManifest;
  readonly files: readonly OfferedFile[];
}

/** A folder that is removed when it is disposed. */
export function makeFolder(): Disposable & { readonly path: string } {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "relight-test-"));
  return {
    path: folder,
    [Symbol.dispose]: () => fs.rmSync(folder, { recursive: true, force: true }),
  };
}

/** Files by relative path and size in bytes. */
export function makeTree(sizes: Readonly<Record<string, number>>, seed = 1): Tree {
  const folder = makeFolder();
  const random = generator(seed);
  const entries: ManifestFile[] = [];
  for (const [relative, size] of Object.entries(sizes)) {
    const bytes = randomBytes(size, random);
    fs.mkdirSync(path.dirname(path.join(folder.path, relative)), { recursive: true });
    fs.writeFileSync(path.join(folder.path, relative), bytes);
    entries.push(entryOf(relative, bytes));
  }
  const manifest = encodeManifest({ family: "test", files: entries });
  const files = manifest.files.map((file) => offered(path.join(folder.path, file.path)));
  return { root: folder.path, manifest, files, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

export function offerOf(tree: Tree, have?: PieceSet): Offer {
  const pieces = listPieces(tree.manifest);
  const all = new PieceSet(pieces.length);
  all.addAll();
  return {
    artifactId: tree.manifest.artifactId,
    manifest: tree.manifest.bytes,
    files: tree.files,
    pieces,
    have: have ?? all,
  };
}

export function stagingFor(tree: Pick<Tree, "manifest">, root: string): Staging {
  const pieces = listPieces(tree.manifest);
  return { root, files: tree.manifest.files, pieces, have: new PieceSet(pieces.length) };
}

/** The offer of what arrives in a staging: no stamps, because only the owner writes there. */
export function relayOf(tree: Pick<Tree, "manifest">, staging: Staging): Offer {
  return {
    artifactId: tree.manifest.artifactId,
    manifest: tree.manifest.bytes,
    files: tree.manifest.files.map((file) => ({
      path: path.join(staging.root, file.path),
      size: file.size,
      stamp: null,
    })),
    pieces: staging.pieces,
    have: staging.have,
  };
}

/** Relative paths whose bytes or modes differ between two folders, as far as the manifest names them. */
export function differences(tree: Tree, root: string): string[] {
  return tree.manifest.files
    .filter(({ path: relative, mode }) => {
      const got = path.join(root, relative);
      if (!fs.existsSync(got) || (fs.statSync(got).mode & 0o777) !== mode) return true;
      return !fs.readFileSync(got).equals(fs.readFileSync(path.join(tree.root, relative)));
    })
    .map((file) => file.path);
}

/** A repeatable generator of 32-bit numbers (mulberry32). */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

export function randomBytes(size: number, random: () => number): Buffer {
  const words = new Uint32Array(Math.ceil(size / 4));
  for (let at = 0; at < words.length; at++) words[at] = random();
  return Buffer.from(words.buffer, 0, size);
}

function entryOf(relative: string, bytes: Buffer): ManifestFile {
  const chunks =
    bytes.length <= chunkBytes
      ? []
      : Array.from({ length: Math.ceil(bytes.length / chunkBytes) }, (_, chunk) =>
          blake3Hex(bytes.subarray(chunk * chunkBytes, (chunk + 1) * chunkBytes)),
        );
  const digest = chunks.length === 0 ? wholeDigest(blake3Hex(bytes)) : chunkedDigest(chunks);
  return { path: relative, mode: 0o644, size: bytes.length, form: "plain", digest, chunks };
}

function offered(file: string): OfferedFile {
  const stats = fs.statSync(file, { bigint: true });
  return {
    path: file,
    size: Number(stats.size),
    stamp: { mtimeNs: stats.mtimeNs, inode: stats.ino },
  };
}
