// SPDX-License-Identifier: Apache-2.0
// The two readers of a statement agree: what the quick one takes, the general one takes for the same.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { blake3Hex, chunkedDigest, wholeDigest } from "../core/digest.ts";
import { chunkBytes } from "../core/pieces.ts";
import { encodeManifest, type ManifestFile } from "./manifest.ts";
import { type Authorship, decodeStatement, encodeStatement } from "./statement.ts";
import { scanStatement } from "./statement-scan.ts";

const digest = blake3Hex(Buffer.from("kernel"));
const chunks = [digest, digest, digest];
const authorship: Authorship = {
  identity: { gpu: "sm_90", note: 'a","subject":[{"annotations":' },
  model: "org/model",
  environment: "production",
  producer: { node: "warmer" },
  coverage: ["healthy"],
  createdAt: 1_763_640_000_000,
  expiresAt: 1_766_232_000_000,
  epoch: 3,
};

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
const text = textOf(files);

describe("scanStatement()", () => {
  test("reads what encodeStatement() wrote, whatever the author says of it", () => {
    assert.deepEqual(scanStatement(text)?.files, files);
    assert.deepEqual(decodeStatement(Buffer.from(text)).manifest.files, files);
  });

  test("leaves a statement to the general reader when a name, a time or the head is not plain", () => {
    for (const path of ["ü", 'quo"te', "bell\x07"])
      assert.equal(scanStatement(textOf([...files, file(path)])), null);
    assert.equal(scanStatement(textOf([file("a", { modifiedMs: 1 })])), null);
    const named = { ...authorship, producer: { node: "Wärmer" } };
    const foreign = encodeStatement({
      manifest: encodeManifest({ family: "x", files }),
      authorship: named,
    });
    assert.equal(scanStatement(foreign.toString("latin1")), null);
    assert.equal(decodeStatement(foreign).authorship.producer["node"], "Wärmer");
  });

  test("takes no other spelling: whatever the reader takes is what would be written again", () => {
    let taken = 0;
    for (let at = 0; at < text.length; at++) {
      for (const changed of [splice(text, at, 1, ""), ...variants(text, at)]) {
        const bytes = Buffer.from(changed, "latin1");
        const statement = readOrNull(bytes);
        if (statement === null) continue;
        taken++;
        assert.ok(encodeStatement(statement).equals(bytes));
      }
    }
    // Another letter in what the author says is another statement, and a good one.
    assert.ok(taken > 50, `${taken} of them were taken`);
  });
});

function textOf(some: readonly ManifestFile[]): string {
  const manifest = encodeManifest({ family: "triton", files: some });
  return encodeStatement({ manifest, authorship }).toString("latin1");
}

function readOrNull(bytes: Buffer) {
  try {
    return decodeStatement(bytes);
  } catch {
    // Refused, as almost all of them must be.
    return null;
  }
}

function variants(from: string, at: number): string[] {
  return [...' 0a]}",\\'].flatMap((sign) => [splice(from, at, 0, sign), splice(from, at, 1, sign)]);
}

function splice(from: string, at: number, count: number, sign: string): string {
  return from.slice(0, at) + sign + from.slice(at + count);
}
