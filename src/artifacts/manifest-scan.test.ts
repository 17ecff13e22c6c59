// SPDX-License-Identifier: Apache-2.0
// The two readers of a manifest agree: what the quick one takes, the general one takes for the same.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { blake3Hex, chunkedDigest, wholeDigest } from "../core/digest.ts";
import { chunkBytes } from "../core/pieces.ts";
import { encodeManifest, type Manifest, type ManifestFile, manifestFormat } from "./manifest.ts";
import { scanManifest } from "./manifest-scan.ts";

const digest = blake3Hex(Buffer.from("kernel"));
const chunks = [digest, digest, digest];

function file(path: string, overrides: Partial<ManifestFile> = {}): ManifestFile {
  const kind = { mode: 0o644, form: "plain", digest: wholeDigest(digest), chunks: [] } as const;
  return { path, size: 10, ...kind, ...overrides };
}

const files = [
  file("a/b.cubin"),
  file("a/run me", { mode: 0o755, size: 0 }),
  file("big", { size: 2 * chunkBytes + 1, chunks, digest: chunkedDigest(chunks) }),
  file("c/__grp__x.json", { form: "rooted", size: 123_456 }),
];
const sealed = encodeManifest({ family: "triton", files });
const text = sealed.bytes.toString("latin1");

describe("scanManifest()", () => {
  test("reads what encodeManifest() wrote", () => {
    assert.deepEqual(scanManifest(text, manifestFormat), { family: "triton", files: sealed.files });
  });

  test("leaves a manifest to the general reader when a name of it is not plain", () => {
    for (const path of ["ü", 'quo"te', "back\\slash", "bell\x07"]) {
      const { bytes } = encodeManifest({ family: "triton", files: [...files, file(path)] });
      assert.equal(scanManifest(bytes.toString("latin1"), manifestFormat), null);
    }
  });

  test("takes no other spelling: whatever it takes is what would be written again", () => {
    let taken = 0;
    for (let at = 0; at < text.length; at++) {
      for (const changed of [splice(text, at, 1, ""), ...variants(text, at)]) {
        const manifest = scanManifest(changed, manifestFormat);
        if (manifest === null) continue;
        taken++;
        assert.equal(encodeUnsorted(manifest), changed);
      }
    }
    // Another letter in a path or digit in a size is another manifest, and a good one.
    assert.ok(taken > 100, `${taken} of them were taken`);
  });
});

function variants(from: string, at: number): string[] {
  return [...' 0a]}",\\é'].flatMap((sign) => [
    splice(from, at, 0, sign),
    splice(from, at, 1, sign),
  ]);
}

function splice(from: string, at: number, count: number, sign: string): string {
  return from.slice(0, at) + sign + from.slice(at + count);
}

/** In the order in which they are given: order is for others to check. */
function encodeUnsorted({ family, files: some }: Manifest): string {
  const entries = some.map((each) =>
    encodeManifest({ family, files: [each] }).bytes.toString("latin1"),
  );
  const inner = entries.map((entry) => entry.slice(entry.indexOf("[") + 1, entry.lastIndexOf("]")));
  return `{"family":"${family}","files":[${inner.join(",")}],"format":"${manifestFormat}"}`;
}
