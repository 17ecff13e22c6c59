// SPDX-License-Identifier: Apache-2.0
// Large graph entries on a real disk: sealed at one root, installed at another, served from the spool.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { temporaryFolder } from "../../test/support/temporary-folder.ts";
import { chunkBytes } from "../core/pieces.ts";
import { hashBytes, hashPath } from "./hash-file.ts";
import { inductor } from "./kinds/inductor.ts";
import { decodeManifest } from "./manifest.ts";
import { cleanSpool, isSpooled, portableFile } from "./portable-file.ts";
import { fromPortable } from "./rebase.ts";
import { type SealedFile, seal } from "./seal.ts";

const entry = "fxgraph/fp/ffpmzz/b4gstoz";

describe("a large graph entry", () => {
  test("gives replicas at different roots one artifact, whose bytes lie in the spool", () => {
    using folder = temporaryFolder();
    const seals = ["a", "longer-name"].map((name) => {
      folder.write(`${name}/${entry}`, largeEntry(folder.path(name)));
      return sealed(folder.path(name));
    });
    const [first, second] = seals;
    assert.ok(first && second);
    assert.equal(first.manifest.artifactId, second.manifest.artifactId);
    decodeManifest(first.manifest.bytes, { artifactId: first.manifest.artifactId });
    const [file] = first.files;
    assert.ok(file?.spooled);
    assert.equal(file.entry.form, "rooted");
    assert.equal(file.entry.chunks.length, 2);
    assert.deepEqual(hashPath(file.spooled.path), {
      digest: file.entry.digest,
      chunks: file.entry.chunks,
    });
    assert.equal(first.files.length, 1, "the spool is no part of the cache");
  });

  test("becomes the entry of the target's root, byte for byte what the engine would have written", () => {
    using folder = temporaryFolder();
    const root = folder.path("a");
    folder.write(`a/${entry}`, largeEntry(root));
    const [file] = sealed(root)?.files ?? [];
    assert.ok(file?.spooled);
    const at = { root: "/another/root", path: entry };
    const installed = fromPortable(fs.readFileSync(file.spooled.path), at, new Set());
    assert.ok(installed.equals(largeEntry(at.root)));
  });

  test("is not read again while its spooled form is there, and is when that was removed", () => {
    using folder = temporaryFolder();
    const root = folder.path("a");
    folder.write(`a/${entry}`, largeEntry(root));
    const first = sealed(root)?.files[0];
    const again = sealed(root, first)?.files[0];
    assert.equal(again, first);
    assert.ok(first?.spooled);
    fs.rmSync(first.spooled.path);
    assert.equal(isSpooled(first.spooled), false);
    const anew = sealed(root, first)?.files[0];
    assert.ok(anew?.spooled && isSpooled(anew.spooled));
    assert.deepEqual(anew.entry, first.entry);
  });

  test("travels as it is where its portable form cannot be kept", () => {
    using folder = temporaryFolder();
    const root = folder.path("a");
    folder.write(`a/${entry}`, largeEntry(root));
    // A file stands where the spool wants to be.
    folder.write("a/.relight/portable", Buffer.from("x"));
    const bytes = largeEntry(root);
    const [file] = sealed(root)?.files ?? [];
    assert.equal(file?.entry.form, "plain");
    assert.equal(file?.entry.digest, hashBytes(bytes).digest);
  });
});

describe("cleanSpool()", () => {
  test("removes what is older than an hour and in no artifact, and nothing else", () => {
    using folder = temporaryFolder();
    const root = folder.path("a");
    const kept = spool(root, 1);
    const old = spool(root, 2);
    const young = spool(root, 3);
    const hour = 3_600_000;
    for (const { path: file } of [kept, old])
      fs.utimesSync(file, new Date(Date.now() - 2 * hour), new Date(Date.now() - 2 * hour));
    cleanSpool(root, { keep: [kept], nowMs: Date.now() });
    assert.deepEqual(
      fs.readdirSync(path.join(root, ".relight/portable")).sort(),
      [path.basename(kept.path), path.basename(young.path)].sort(),
    );
    cleanSpool(folder.path("never-used"), { keep: [], nowMs: Date.now() });
  });
});

function sealed(root: string, known?: SealedFile) {
  return seal({
    root,
    family: inductor,
    excluded: [],
    settledBeforeMs: Date.now() + 60_000,
    ...(known ? { known: new Map([[known.entry.path, known]]) } : {}),
  });
}

function spool(root: string, seed: number) {
  const spooled = portableFile(largeEntry(root, seed), { root, path: entry })?.spooled;
  assert.ok(spooled);
  return spooled;
}

/** A pickle of protocol 4, as CPython writes it: a large byte string outside frames, a path inside one. */
function largeEntry(root: string, seed = 0): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt32LE(chunkBytes + 10);
  const named = Buffer.from(`${root}/wt/f5fe083f.best_config`);
  const body = Buffer.concat([
    Buffer.from([0x8c, named.length]),
    named,
    Buffer.from("\x94\x86.", "latin1"),
  ]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(body.length));
  const bytes = Buffer.alloc(chunkBytes + 10, seed);
  return Buffer.concat([
    Buffer.from([0x80, 4, 0x42]),
    size,
    bytes,
    Buffer.from([0x95]),
    length,
    body,
  ]);
}
