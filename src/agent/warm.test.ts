// SPDX-License-Identifier: Apache-2.0
// What a replica passes on while it installs.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { encodeManifest, listPieces, type ManifestFile } from "../artifacts/manifest.ts";
import { blake3Hex, chunkedDigest, wholeDigest } from "../core/digest.ts";
import { chunkBytes, PieceSet } from "../core/pieces.ts";
import { withholdRooted } from "./warm.ts";

const hex = blake3Hex(Buffer.from("x"));

function file(path: string, more: Partial<ManifestFile> = {}): ManifestFile {
  const plain = { path, mode: 0o644, size: 1, form: "plain", digest: wholeDigest(hex), chunks: [] };
  return { ...plain, ...more } as ManifestFile;
}

describe("withholdRooted()", () => {
  test("serves every piece from staging but those of files that are about to be rebased there", () => {
    const chunks = [hex, hex];
    const large = { size: 2 * chunkBytes, chunks, digest: chunkedDigest(chunks) };
    const manifest = encodeManifest({
      family: "x",
      files: [
        file("a", large),
        file("b", { form: "rooted" }),
        file("c"),
        file("d", { ...large, form: "rooted" }),
      ],
    });
    const have = new PieceSet(listPieces(manifest).length);
    have.addAll();
    withholdRooted(manifest, have);
    const left = Array.from({ length: have.size }, (_, piece) => have.has(piece));
    assert.deepEqual(left, [true, true, false, true, false, false]);
  });
});
