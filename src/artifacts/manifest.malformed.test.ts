// SPDX-License-Identifier: Apache-2.0
// Foreign manifests that must be refused, each with its code, before anything else happens.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { blake3Hex, chunkedDigest, wholeDigest } from "../core/digest.ts";
import { chunkBytes } from "../core/pieces.ts";
import { decodeManifest, encodeManifest, manifestFormat, manifestLimits } from "./manifest.ts";

const rootedChunks = Math.ceil((manifestLimits.rootedBytesMax + 1) / chunkBytes);
const digestA = wholeDigest(blake3Hex(Buffer.from("a")));
const file = (path: string, more: object = {}) => ({
  chunks: [],
  digest: digestA,
  form: "plain",
  mode: 0o644,
  path,
  size: 1,
  ...more,
});

/** The bytes as a hostile source would spell them, with the id that fits them. */
function decode(files: readonly object[], more: object = {}): unknown {
  const bytes = Buffer.from(
    JSON.stringify({ family: "x", files, format: manifestFormat, ...more }),
  );
  return decodeManifest(bytes, { artifactId: blake3Hex(bytes) });
}

function refused(code: string, act: () => unknown): void {
  assert.throws(act, { code });
}

describe("decodeManifest()", () => {
  test("accepts what encodeManifest wrote, in any order of files", () => {
    const sealed = encodeManifest({ family: "x", files: [file("b"), file("a")] as never });
    assert.deepEqual(
      decodeManifest(sealed.bytes, sealed).files.map(({ path }) => path),
      ["a", "b"],
    );
  });

  for (const [name, path] of [
    ["absolute", "/etc/passwd"],
    ["that climbs out", "a/../../b"],
    ["with an empty name", "a//b"],
    ["with a dot", "a/./b"],
    ["with NUL", "a\0b"],
    ["with a line break", "a\nb"],
    ["with a backslash", "a\\..\\b"],
    ["in Relight's own folder", ".relight/journal.json"],
    ["in Relight's own folder by another case", ".ReLight/x"],
    ["that is not normalised", "e\u0301"],
    ["with a lone surrogate", "a\ud800b"],
    ["with a name of 256 bytes", "n".repeat(256)],
    ["that is too deep", Array(65).fill("d").join("/")],
    ["longer than a path may be", `${"d/".repeat(60)}${"x/".repeat(1_000)}y`],
  ] as const) {
    test(`refuses a path ${name}`, () => refused("path_unsafe", () => decode([file(path)])));
  }

  for (const [name, paths] of [
    ["a path twice", ["a", "a"]],
    ["paths out of order", ["b", "a"]],
    ["paths that differ in case alone", ["A", "a"]],
    ["paths that differ in compatibility form alone", ["ﬁ", "fi"].toSorted()],
    ["a file below a file", ["a", "a/b"]],
    ["a file below a file of another case", ["A", "a/b"]],
  ] as const) {
    test(`refuses ${name}`, () =>
      refused("manifest_invalid", () => decode(paths.map((path) => file(path)))));
  }

  for (const [name, wrong] of [
    ["a negative size", { size: -1 }],
    ["a size that is no integer", { size: 1.5 }],
    ["a size beyond the limit", { size: manifestLimits.fileBytesMax + 1 }],
    ["setuid bits", { mode: 0o4755 }],
    ["a mode that others may write", { mode: 0o777 }],
    ["an unknown form", { form: "link" }],
    ["a link's target", { target: "/etc" }],
    ["a modification time that is no time", { modifiedMs: -1 }],
    ["a modification time as text", { modifiedMs: "1" }],
    ["a digest of another algorithm", { digest: `md5:${"0".repeat(32)}` }],
    ["a digest in capitals", { digest: digestA.toUpperCase() }],
    ["chunks where the size wants none", { chunks: [blake3Hex(Buffer.from("a"))] }],
    ["too few chunks", { size: chunkBytes + 1, chunks: [blake3Hex(Buffer.from("a"))] }],
    [
      "chunks that contradict the digest",
      {
        size: chunkBytes + 1,
        chunks: Array(2).fill(blake3Hex(Buffer.from("a"))),
        digest: chunkedDigest([blake3Hex(Buffer.from("b"))]),
      },
    ],
    [
      "a file in rooted form that nobody could hold in memory",
      {
        size: manifestLimits.rootedBytesMax + 1,
        form: "rooted",
        chunks: Array(rootedChunks).fill(blake3Hex(Buffer.from("a"))),
        digest: chunkedDigest(Array(rootedChunks).fill(blake3Hex(Buffer.from("a")))),
      },
    ],
    [
      "a whole digest on a chunked file",
      { size: chunkBytes + 1, chunks: Array(2).fill(blake3Hex(Buffer.from("a"))) },
    ],
  ] as const) {
    test(`refuses ${name}`, () => refused("manifest_invalid", () => decode([file("a", wrong)])));
  }

  test("refuses more bytes in all than a target takes", () => {
    const size = manifestLimits.fileBytesMax;
    const chunks = Array(size / chunkBytes).fill(blake3Hex(Buffer.from("a")));
    const large = { size, chunks, digest: chunkedDigest(chunks) };
    const count = manifestLimits.totalBytesMax / size + 1;
    // A manifest of that many chunk digests is itself too large, which is the first check to fail.
    refused("manifest_invalid", () =>
      decode(
        Array.from({ length: count }, (_, index) =>
          file(`f${String(index).padStart(4, "0")}`, large),
        ),
      ),
    );
  });

  test("refuses more files than a target takes, before it looks at any", () => {
    const files = Array(manifestLimits.filesMax + 1).fill(null);
    assert.throws(() => decode(files), {
      code: "manifest_invalid",
      message: /400001 files, want 1 to 400000/,
    });
  });

  test("accepts a file with its modification time, in the key's place", () => {
    const timed = encodeManifest({
      family: "x",
      files: [file("a", { modifiedMs: 5 }), file("b")] as never,
    });
    const { files } = decodeManifest(timed.bytes, timed);
    assert.deepEqual(
      files.map(({ modifiedMs }) => modifiedMs),
      [5, undefined],
    );
  });

  test("refuses an entry that is no object, lacks a key or has its keys in another order", () => {
    const { path: name, ...nameless } = file("a");
    for (const entry of [null, [], "a", nameless, { path: name, ...nameless }])
      refused("manifest_invalid", () => decode([entry as object]));
  });

  test("refuses a file below one that stands apart from it in the list", () => {
    refused("manifest_invalid", () => decode(["a", "a.b/c", "a/b", "a/c"].map((at) => file(at))));
    refused("manifest_invalid", () => decode(["a/b", "a/b.c", "a/b/c/d"].map((at) => file(at))));
  });

  test("refuses no files, an unknown family name, an unknown format and unknown keys", () => {
    refused("manifest_invalid", () => decode([]));
    refused("manifest_invalid", () => decode([file("a")], { family: "../x" }));
    refused("manifest_invalid", () => decode([file("a")], { format: "relight.artifact.v2" }));
    refused("manifest_invalid", () => decode([file("a")], { extra: 1 }));
  });

  test("refuses bytes that are not its id's, not JSON, not UTF-8, not canonical, nested or too many", () => {
    const sealed = encodeManifest({ family: "x", files: [file("a")] as never });
    refused("digest_mismatch", () =>
      decodeManifest(sealed.bytes, { artifactId: blake3Hex(Buffer.from("other")) }),
    );
    for (const text of ["", "{", "null", "[]", "[".repeat(10_000), '{"files":1}']) {
      const bytes = Buffer.from(text);
      refused("manifest_invalid", () => decodeManifest(bytes, { artifactId: blake3Hex(bytes) }));
    }
    const spaced = Buffer.from(`${sealed.bytes.toString()} `);
    refused("manifest_invalid", () => decodeManifest(spaced, { artifactId: blake3Hex(spaced) }));
    const latin = Buffer.concat([sealed.bytes, Buffer.from([0xff])]);
    refused("manifest_invalid", () => decodeManifest(latin, { artifactId: blake3Hex(latin) }));
    const huge = Buffer.alloc(manifestLimits.bytesMax + 1, 0x20);
    refused("manifest_invalid", () => decodeManifest(huge, { artifactId: "0".repeat(64) }));
  });
});
