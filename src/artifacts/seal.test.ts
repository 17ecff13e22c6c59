// SPDX-License-Identifier: Apache-2.0
// Sealing real folders: what is taken, what is left out and why, and that equal trees have equal ids.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { temporaryFolder } from "../../test/support/temporary-folder.ts";
import { chunkBytes } from "../core/pieces.ts";
import { customFamily } from "./kinds/custom.ts";
import { triton } from "./kinds/triton.ts";
import { decodeManifest, listPieces } from "./manifest.ts";
import { type SealOptions, seal } from "./seal.ts";

function options(root: string, overrides: Partial<SealOptions> = {}): SealOptions {
  return {
    root,
    family: customFamily("any", root),
    excluded: [],
    settledBeforeMs: Date.now() + 60_000,
    ...overrides,
  };
}

describe("seal()", () => {
  test("gives equal trees at different roots one artifact id, and decodes to itself", () => {
    using folder = temporaryFolder();
    for (const root of ["a", "b"]) {
      folder.write(`${root}/k1/kernel.so`, Buffer.alloc(10, 1));
      folder.write(`${root}/k2/empty`, Buffer.alloc(0));
      folder.write(`${root}/big`, Buffer.alloc(2 * chunkBytes + 5, 7));
    }
    const first = seal(options(folder.path("a")));
    const second = seal(options(folder.path("b"), { family: customFamily("any", "/elsewhere") }));
    assert.ok(first && second);
    assert.equal(first.manifest.artifactId, second.manifest.artifactId);
    const decoded = decodeManifest(first.manifest.bytes, { artifactId: first.manifest.artifactId });
    assert.deepEqual(
      decoded.files.map((file) => [file.path, file.size, file.chunks.length]),
      [
        ["big", 2 * chunkBytes + 5, 3],
        ["k1/kernel.so", 10, 0],
        ["k2/empty", 0, 0],
      ],
    );
    assert.deepEqual(
      listPieces(decoded).map(({ length }) => length),
      [chunkBytes, chunkBytes, 5, 10, 0],
    );
  });

  test("leaves out links, special files, temporary names, our own folder and what still settles, and names them", () => {
    using folder = temporaryFolder();
    folder.write("root/good.so", Buffer.from("x"));
    folder.write("root/half.so.tmp", Buffer.from("x"));
    folder.write("root/.relight/receipts/r.json", Buffer.from("x"));
    fs.symlinkSync("/etc/passwd", folder.path("root/link"));
    fs.symlinkSync("/etc", folder.path("root/linked-folder"));
    execFileSync("mkfifo", [folder.path("root/pipe")]);
    folder.write("root/fresh.so", Buffer.from("x"));
    fs.utimesSync(folder.path("root/fresh.so"), new Date(), new Date(Date.now() + 120_000));
    const result = seal(options(folder.path("root")));
    assert.deepEqual(
      result?.manifest.files.map((file) => file.path),
      ["good.so"],
    );
    assert.deepEqual(result?.skipped.map(({ path: name, reason }) => `${name}: ${reason}`).sort(), [
      "fresh.so: still settling",
      "half.so.tmp: temporary",
      "link: a link",
      "linked-folder: a link",
      "pipe: not a regular file",
    ]);
  });

  test("answers null for a cache with nothing in it, and for one that does not exist", () => {
    using folder = temporaryFolder();
    assert.equal(seal(options(folder.path("."))), null);
    assert.equal(seal(options(folder.path("absent"))), null);
  });

  test("does not read again what has not changed since the last seal, and does what has", () => {
    using folder = temporaryFolder();
    folder.write("root/a", Buffer.from("one"));
    folder.write("root/b", Buffer.from("two"));
    const first = seal(options(folder.path("root")));
    assert.ok(first);
    const known = new Map(first.files.map((file) => [file.entry.path, file]));
    folder.write("root/b", Buffer.from("TWO"));
    fs.utimesSync(folder.path("root/b"), 1, 1);
    const second = seal(options(folder.path("root"), { known }));
    assert.equal(second?.files[0], first.files[0]);
    assert.notEqual(second?.files[1]?.entry.digest, first.files[1]?.entry.digest);
  });

  test("seals a Triton group in portable form and leaves out one that points outside its root", () => {
    using folder = temporaryFolder();
    const root = folder.path("root");
    folder.write("root/k/kernel.cubin", Buffer.from("cubin"));
    folder.write(
      "root/k/__grp__kernel.json",
      group({ "kernel.cubin": path.join(root, "k/kernel.cubin") }),
    );
    folder.write("root/evil/__grp__kernel.json", group({ "kernel.cubin": "/etc/passwd" }));
    folder.write(
      "root/gone/__grp__kernel.json",
      group({ "kernel.cubin": path.join(root, "gone/kernel.cubin") }),
    );
    // Triton writes no such file: peers would refuse all for it.
    folder.write("root/k/sitecustomize.py", Buffer.from("import os"));
    const result = seal(options(root, { family: triton }));
    assert.deepEqual(
      result?.manifest.files.map((file) => [file.path, file.form]),
      [
        ["k/__grp__kernel.json", "rooted"],
        ["k/kernel.cubin", "plain"],
      ],
    );
    const reasons = new Map(result?.skipped.map(({ path: name, reason }) => [name, reason]));
    assert.match(reasons.get("evil/__grp__kernel.json") ?? "", /lies outside/);
    assert.match(reasons.get("gone/__grp__kernel.json") ?? "", /not sealed/);
  });
});

function group(children: Record<string, string>): Buffer {
  return Buffer.from(JSON.stringify({ child_paths: children }));
}
