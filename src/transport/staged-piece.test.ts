// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { withCode } from "../../test/contracts/transport.ts";
import { makeFolder } from "../../test/support/tree.ts";
import { blake3Hex } from "../core/digest.ts";
import { PieceSet } from "../core/pieces.ts";
import { PieceIntake, type StagedPiece } from "./staged-piece.ts";

const bytes = Buffer.alloc(300_000, "kernel");

describe("PieceIntake", () => {
  test("accept() takes a piece whose parts were shown before, and the next one", () => {
    using folder = makeFolder();
    const intake = new PieceIntake();
    for (const name of ["one", "two"]) {
      const want = wanted(path.join(folder.path, name));
      for (const end of [10, 140_000, 290_000]) intake.arrived(bytes.subarray(0, end));
      intake.accept(bytes, want);
      assert.deepEqual(fs.readFileSync(want.path), bytes);
    }
  });

  test("accept() refuses one changed bit, writes nothing, and takes the next piece", () => {
    using folder = makeFolder();
    const intake = new PieceIntake();
    const want = wanted(path.join(folder.path, "file"));
    const changed = Buffer.from(bytes);
    changed[0] = 0;
    assert.throws(() => intake.accept(changed, want), withCode("digest_mismatch"));
    assert.deepEqual(fs.readdirSync(folder.path), []);
    intake.accept(bytes, want);
  });

  test("accept() gives the manifest's mode whatever the umask", () => {
    using folder = makeFolder();
    const before = process.umask(0o077);
    try {
      const want = { ...wanted(path.join(folder.path, "a/b/file")), mode: 0o755 };
      new PieceIntake().accept(bytes, want);
      assert.equal(fs.statSync(want.path).mode & 0o777, 0o755);
    } finally {
      process.umask(before);
    }
  });

  test("accept() writes a chunk at its offset and leaves the others alone", () => {
    using folder = makeFolder();
    const want = { ...wanted(path.join(folder.path, "file")), fileBytes: 2 * bytes.length };
    const intake = new PieceIntake();
    intake.accept(bytes, { ...want, offset: bytes.length });
    intake.accept(bytes, want);
    assert.deepEqual(fs.readFileSync(want.path), Buffer.concat([bytes, bytes]));
  });

  test("accept() finishes a whole file of the form that its name promises, and no other", () => {
    using folder = makeFolder();
    const finished = new PieceSet(4);
    const finishing = { accessMs: 1_000_000, modifiedMs: 2_000_000, finished };
    const intake = new PieceIntake(finishing);
    const [text, elf] = [Buffer.from('{"a":1}'), Buffer.from("\x7fELF kernel", "latin1")];
    for (const [fileIndex, name, content] of [
      [0, "good.json", text],
      [1, "bad.json", elf],
      [2, "bad.cubin", text],
      [3, "good.cubin", elf],
    ] as const) {
      const size = { fileBytes: content.length, length: content.length, fileIndex };
      const want = { ...wanted(path.join(folder.path, name)), ...size };
      intake.accept(content, { ...want, digest: blake3Hex(content) });
      const { atimeMs, mtimeMs } = fs.statSync(want.path);
      assert.equal(
        atimeMs === finishing.accessMs && mtimeMs === finishing.modifiedMs,
        name.startsWith("good"),
      );
      assert.deepEqual(fs.readFileSync(want.path), content);
    }
    assert.deepEqual(
      [0, 1, 2, 3].map((file) => finished.has(file)),
      [true, false, false, true],
    );
  });

  test("accept() leaves a chunk of a larger file unfinished", () => {
    using folder = makeFolder();
    const finished = new PieceSet(1);
    const intake = new PieceIntake({ accessMs: 1_000, modifiedMs: 2_000, finished });
    const want = wanted(path.join(folder.path, "file"));
    intake.accept(bytes, { ...want, fileBytes: 2 * bytes.length });
    assert.equal(finished.has(0), false);
  });

  test("accept() does not follow a link in the file's place", () => {
    using folder = makeFolder();
    const want = wanted(path.join(folder.path, "file"));
    fs.symlinkSync("elsewhere", want.path);
    assert.throws(() => new PieceIntake().accept(bytes, want), withCode("target_obstructed"));
    assert.equal(fs.existsSync(path.join(folder.path, "elsewhere")), false);
  });

  test("accept() names a full disk", () => {
    const want = wanted("/dev/full");
    assert.throws(() => new PieceIntake().accept(bytes, want), withCode("disk_full"));
  });
});

function wanted(file: string): StagedPiece {
  return {
    piece: 0,
    path: file,
    fileBytes: bytes.length,
    mode: 0o644,
    offset: 0,
    length: bytes.length,
    fileIndex: 0,
    digest: blake3Hex(bytes),
  };
}
