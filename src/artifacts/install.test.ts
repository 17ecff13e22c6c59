// SPDX-License-Identifier: Apache-2.0
// Installing into real folders: nothing is overwritten, nothing half-done stays, a crash is completed
// or undone at the next start, and hostile trees are refused before anything is visible.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { type TemporaryFolder, temporaryFolder } from "../../test/support/temporary-folder.ts";
import { visibleFiles } from "../../test/support/visible-files.ts";
import {
  createStaging,
  finishingOf,
  installStaged,
  missingFiles,
  openRoot,
  recoverRoot,
} from "./install.ts";
import { triton } from "./kinds/triton.ts";
import { ownPaths, readReceipts, writeJournal } from "./receipt.ts";
import { seal } from "./seal.ts";
import { uninstall } from "./uninstall.ts";

const nowMs = 1_790_000_000_000;

/** A sealed cache at `source`, its bytes staged for `target` as a transfer would leave them. */
function stage(folder: TemporaryFolder, options: { corrupt?: (tree: string) => void } = {}) {
  const source = folder.path("source");
  folder.write("source/k/kernel.cubin", Buffer.from("\x7fELF cubin", "latin1"));
  folder.write("source/k/kernel.json", "{}");
  folder.write(
    "source/k/__grp__kernel.json",
    JSON.stringify({ child_paths: { "kernel.cubin": path.join(source, "k/kernel.cubin") } }),
  );
  const sealed = seal({
    root: source,
    family: triton,
    excluded: [],
    settledBeforeMs: Date.now() + 60_000,
  });
  assert.ok(sealed);
  const root = openRoot(folder.path("target"));
  const files = missingFiles(root, sealed.manifest);
  const staging = createStaging(root, files);
  for (const file of sealed.files) {
    if (!files.includes(file.entry)) continue;
    fs.writeFileSync(
      path.join(staging.tree, file.entry.path),
      file.portable ?? fs.readFileSync(path.join(source, file.entry.path)),
    );
  }
  options.corrupt?.(staging.tree);
  return { root, staging, files, manifest: sealed.manifest, sources: ["http://a"], nowMs };
}

const allowed = () => true;

function unreadable(): never {
  throw new Error("no receipt should be unreadable");
}

describe("installStaged()", () => {
  test("places every file, rebases the group to the target's root and writes a receipt", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    installStaged(order);
    assert.deepEqual(visibleFiles(order.root), [
      "k/__grp__kernel.json",
      "k/kernel.cubin",
      "k/kernel.json",
    ]);
    const group = JSON.parse(
      fs.readFileSync(path.join(order.root, "k/__grp__kernel.json"), "utf8"),
    );
    assert.deepEqual(group, {
      child_paths: { "kernel.cubin": path.join(order.root, "k/kernel.cubin") },
    });
    const [receipt] = readReceipts(order.root, unreadable);
    assert.equal(receipt?.files.length, 3);
    assert.equal(receipt?.artifactId, order.manifest.artifactId);
    const stat = fs.statSync(path.join(order.root, "k/kernel.cubin"));
    assert.ok(stat.atimeMs < stat.mtimeMs, "an unread file must not look read");
    assert.deepEqual(fs.readdirSync(ownPaths(order.root).staging), []);
  });

  test("leaves alone what the fetcher finished, and still rebases a group", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    const finishing = finishingOf(order.manifest, nowMs - 60_000);
    const { accessMs, modifiedMs, finished } = finishing;
    finished.addAll();
    for (const { path: name, mode } of order.files) {
      fs.chmodSync(path.join(order.staging.tree, name), mode);
      fs.utimesSync(path.join(order.staging.tree, name), accessMs / 1_000, modifiedMs / 1_000);
    }
    const { receipt } = installStaged({ ...order, finishing });
    assert.deepEqual(
      receipt.files.map(({ path: name, mtimeMs }) => [
        mtimeMs,
        fs.statSync(path.join(order.root, name)).mtimeMs,
      ]),
      receipt.files.map(() => [modifiedMs, modifiedMs]),
    );
    const group = fs.readFileSync(path.join(order.root, "k/__grp__kernel.json"), "utf8");
    assert.ok(group.includes(order.root));
  });

  test("checks and completes what the fetcher left unfinished", () => {
    using folder = temporaryFolder();
    const corrupt = (tree: string) => fs.writeFileSync(path.join(tree, "k/kernel.json"), "{");
    const order = stage(folder, { corrupt });
    const finishing = finishingOf(order.manifest, nowMs);
    order.manifest.files.forEach((file, at) => {
      if (file.path !== "k/kernel.json") finishing.finished.add(at);
    });
    assert.throws(() => installStaged({ ...order, finishing }), { code: "structure_invalid" });
    assert.deepEqual(visibleFiles(order.root), []);
  });

  test("keeps a file that the target compiled between the plan and the placing", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    folder.write("target/k/kernel.cubin", "my own");
    const installed = installStaged(order);
    assert.deepEqual(installed.kept, ["k/kernel.cubin"]);
    assert.equal(fs.readFileSync(path.join(order.root, "k/kernel.cubin"), "utf8"), "my own");
    assert.equal(
      installed.receipt.files.some((file) => file.path === "k/kernel.cubin"),
      false,
    );
  });

  for (const [name, corrupt, code] of [
    [
      "a cubin that is no ELF object",
      (tree: string) => fs.writeFileSync(path.join(tree, "k/kernel.cubin"), "#!/bin/sh"),
      "structure_invalid",
    ],
    [
      "a broken JSON",
      (tree: string) => fs.writeFileSync(path.join(tree, "k/kernel.json"), "{"),
      "structure_invalid",
    ],
    [
      "a group that points at an absolute path",
      (tree: string) =>
        fs.writeFileSync(
          path.join(tree, "k/__grp__kernel.json"),
          '{"child_paths":{"a":"/etc/passwd"}}',
        ),
      "path_unsafe",
    ],
    [
      "a group that climbs out",
      (tree: string) =>
        fs.writeFileSync(
          path.join(tree, "k/__grp__kernel.json"),
          '{"child_paths":{"a":"relight-root:/../x"}}',
        ),
      "path_unsafe",
    ],
    [
      "a group that names a file outside its artifact",
      (tree: string) =>
        fs.writeFileSync(
          path.join(tree, "k/__grp__kernel.json"),
          '{"child_paths":{"a":"relight-root:/k/other"}}',
        ),
      "path_unsafe",
    ],
  ] as const) {
    test(`refuses ${name} with nothing visible`, () => {
      using folder = temporaryFolder();
      const order = stage(folder, { corrupt });
      assert.throws(() => installStaged(order), { code });
      assert.deepEqual(visibleFiles(order.root), []);
      assert.deepEqual(readReceipts(order.root, unreadable), []);
    });
  }

  test("refuses a folder that is a link to elsewhere, and writes nothing there", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    fs.mkdirSync(folder.path("elsewhere"));
    fs.symlinkSync(folder.path("elsewhere"), path.join(order.root, "k"));
    assert.throws(() => installStaged(order), { code: "target_obstructed" });
    assert.deepEqual(fs.readdirSync(folder.path("elsewhere")), []);
  });

  test("leaves a link that stands in a file's place alone", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    folder.write("victim", "untouched");
    fs.mkdirSync(path.join(order.root, "k"));
    fs.symlinkSync(folder.path("victim"), path.join(order.root, "k/kernel.cubin"));
    assert.deepEqual(installStaged(order).kept, ["k/kernel.cubin"]);
    assert.equal(fs.readFileSync(folder.path("victim"), "utf8"), "untouched");
  });
});

describe("uninstall()", () => {
  test("removes what it placed, also where only the time was changed, and its receipt", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    const { receipt } = installStaged(order);
    for (const name of ["k/kernel.cubin", "k/__grp__kernel.json"])
      fs.utimesSync(path.join(order.root, name), new Date(), new Date());
    assert.equal(uninstall(order.root, receipt), 3);
    assert.deepEqual(visibleFiles(order.root), []);
    assert.deepEqual(readReceipts(order.root, unreadable), []);
  });

  test("leaves what the engine wrote since under the same name, and what lies behind a link", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    const { receipt } = installStaged(order);
    fs.writeFileSync(path.join(order.root, "k/kernel.json"), '{"own": true}');
    assert.equal(uninstall(order.root, receipt), 2);
    assert.deepEqual(visibleFiles(order.root), ["k/kernel.json"]);
    const elsewhere = folder.path("elsewhere");
    fs.cpSync(folder.path("source/k"), elsewhere, { recursive: true });
    fs.rmSync(path.join(order.root, "k"), { recursive: true });
    fs.symlinkSync(elsewhere, path.join(order.root, "k"));
    assert.equal(uninstall(order.root, receipt), 0);
    assert.equal(fs.readdirSync(elsewhere).length, 3);
  });
});

describe("openRoot()", () => {
  test("refuses a file in the cache's place and a link in the place of Relight's folder", () => {
    using folder = temporaryFolder();
    folder.write("file", "x");
    assert.throws(() => openRoot(folder.path("file")), { code: "target_obstructed" });
    fs.mkdirSync(folder.path("root"));
    fs.symlinkSync("/tmp", folder.path("root/.relight"));
    assert.throws(() => openRoot(folder.path("root")), { code: "target_obstructed" });
  });
});

describe("recoverRoot()", () => {
  test("removes the staging of a crash before the journal", () => {
    using folder = temporaryFolder();
    const { root } = stage(folder);
    assert.equal(recoverRoot(root, allowed), false);
    assert.deepEqual(visibleFiles(root), []);
    assert.deepEqual(fs.readdirSync(ownPaths(root).staging), []);
  });

  test("completes an installation that was cut off while it placed files", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    const placed = installStaged(order).receipt;
    // The state between two placings: one file back in staging, the receipt not yet written.
    fs.rmSync(ownPaths(order.root).receipts, { recursive: true });
    fs.mkdirSync(ownPaths(order.root).receipts);
    fs.mkdirSync(path.join(order.staging.tree, "k"), { recursive: true });
    fs.renameSync(
      path.join(order.root, "k/kernel.json"),
      path.join(order.staging.tree, "k/kernel.json"),
    );
    writeJournal(order.root, { stagingName: path.basename(order.staging.tree), receipt: placed });
    assert.equal(recoverRoot(order.root, allowed), true);
    assert.equal(visibleFiles(order.root).length, 3);
    assert.deepEqual(readReceipts(order.root, unreadable)[0]?.files.length, 3);
  });

  test("takes back what a refused journal had placed, and places no more of it", () => {
    using folder = temporaryFolder();
    const order = stage(folder);
    const { receipt } = installStaged(order);
    fs.mkdirSync(path.join(order.staging.tree, "k"), { recursive: true });
    fs.renameSync(
      path.join(order.root, "k/kernel.json"),
      path.join(order.staging.tree, "k/kernel.json"),
    );
    writeJournal(order.root, { stagingName: path.basename(order.staging.tree), receipt });
    assert.equal(
      recoverRoot(order.root, () => false),
      false,
    );
    assert.deepEqual(visibleFiles(order.root), []);
    assert.deepEqual(fs.readdirSync(ownPaths(order.root).staging), []);
  });

  test("does not trust a journal that names a folder outside its own staging", () => {
    using folder = temporaryFolder();
    const { root } = stage(folder);
    fs.writeFileSync(
      ownPaths(root).journal,
      JSON.stringify({ stagingName: "../../..", receipt: {} }),
    );
    assert.equal(recoverRoot(root, allowed), false);
    assert.equal(fs.existsSync(ownPaths(root).journal), false);
  });
});
