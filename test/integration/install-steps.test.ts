// SPDX-License-Identifier: Apache-2.0
// kill -9 before every single change that an installation makes to the disk: afterwards either nothing is
// visible or only whole files, and the next start leaves the cache complete and tidy.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { openRoot, recoverRoot } from "../../src/artifacts/install.ts";
import { ownPaths, readReceipts } from "../../src/artifacts/receipt.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";
import { visibleFiles } from "../support/visible-files.ts";

const program = path.resolve(import.meta.dirname, "../support/install-victim-process.ts");

function writeSource(folder: TemporaryFolder): string {
  const source = folder.path("source");
  folder.write("source/k/kernel.cubin", Buffer.from("\x7fELF cubin", "latin1"));
  folder.write(
    "source/k/__grp__kernel.json",
    JSON.stringify({ child_paths: { "kernel.cubin": path.join(source, "k/kernel.cubin") } }),
  );
  folder.write("source/other.ptx", "one more");
  return source;
}

/** The target had something of its own in one folder, so that files and not folders are placed there. */
function makeTarget(folder: TemporaryFolder, name: string): string {
  folder.write(`${name}/k/own.txt`, "compiled here");
  return folder.path(name);
}

function install(words: readonly string[]) {
  return spawnSync(process.execPath, [program, ...words], { encoding: "utf8", timeout: 30_000 });
}

const whole = ["k/__grp__kernel.json", "k/kernel.cubin", "k/own.txt", "other.ptx"];

test("an installation killed before each of its changes is nothing or complete, after the next start whole", () => {
  using folder = temporaryFolder();
  const source = writeSource(folder);
  const { stdout, stderr } = install([source, makeTarget(folder, "unhurt"), "0"]);
  const changes = Number(stdout);
  assert.ok(changes > 10, stderr);
  assert.deepEqual(visibleFiles(folder.path("unhurt")), whole);
  for (let step = 1; step <= changes; step++) {
    const target = makeTarget(folder, `target${step}`);
    assert.equal(install([source, target, String(step)]).signal, "SIGKILL", `step ${step}`);
    for (const file of visibleFiles(target)) assertWhole(target, file, step);
    // What the next start does first, whether or not it finds a source.
    const root = openRoot(target);
    recoverRoot(root, () => true);
    const left = visibleFiles(target);
    assert.ok(left.length === 1 || left.length === whole.length, `step ${step}: ${left}`);
    const receipts = readReceipts(root, (error) => assert.fail(error));
    assert.equal(receipts.length === 1, left.length === whole.length, `step ${step}`);
    assert.deepEqual(fs.readdirSync(ownPaths(root).staging), []);
    assert.equal(fs.existsSync(ownPaths(root).journal), false);
  }
});

function assertWhole(target: string, file: string, step: number): void {
  const text = fs.readFileSync(path.join(target, file), "latin1");
  const expected = {
    "k/__grp__kernel.json": JSON.stringify({
      child_paths: { "kernel.cubin": path.join(target, "k/kernel.cubin") },
    }),
    "k/kernel.cubin": "\x7fELF cubin",
    "k/own.txt": "compiled here",
    "other.ptx": "one more",
  }[file];
  assert.equal(text, expected, `step ${step}: ${file}`);
}
