// SPDX-License-Identifier: Apache-2.0
// FlashInfer builds its operators with ninja at every use: an installed cache is worth something only if
// ninja finds nothing to do in it. Real ninja, real compiler, the same root as on the source.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import {
  createStaging,
  installStaged,
  missingFiles,
  openRoot,
} from "../../src/artifacts/install.ts";
import { flashinferJit } from "../../src/artifacts/kinds/flashinfer.ts";
import { seal } from "../../src/artifacts/seal.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

const missing = ["ninja", "cc"].find((name) => spawnSync(name, ["--version"]).status !== 0);
const skip = missing === undefined ? false : `no ${missing} on this machine`;

/** An operator as FlashInfer lays it out: absolute paths, dependencies kept in ninja's own log. */
function buildOperator(folder: TemporaryFolder): string {
  const root = folder.path("cache");
  folder.write("package/op.h", "#define ANSWER 42\n");
  folder.write("cache/generated/op.c", '#include "op.h"\nint answer(void) { return ANSWER; }\n');
  const op = `${root}/cached_ops/op`;
  folder.write(
    "cache/cached_ops/op/build.ninja",
    [
      "rule compile",
      `  command = cc -MMD -MF $out.d -fPIC -I${folder.path("package")} -c $in -o $out`,
      "  depfile = $out.d",
      "  deps = gcc",
      "rule link",
      "  command = cc -shared $in -o $out",
      `build ${op}/op.o: compile ${root}/generated/op.c`,
      `build ${op}/op.so: link ${op}/op.o`,
      "",
    ].join("\n"),
  );
  ninja(root);
  return root;
}

function ninja(root: string, ...words: string[]): string {
  const operators = path.join(root, "cached_ops");
  return execFileSync("ninja", ["-C", operators, "-f", "op/build.ninja", ...words], {
    encoding: "utf8",
    timeout: 20_000,
  });
}

/** What a target has after it took everything from a source that is gone by then. */
function moveThroughManifest(root: string, nowMs: number): void {
  const settledBeforeMs = Date.now() + 60_000;
  const sealed = seal({ root, family: flashinferJit, excluded: [], settledBeforeMs });
  assert.ok(sealed);
  fs.renameSync(root, `${root}-of-the-source`);
  const target = openRoot(root);
  const files = missingFiles(target, sealed.manifest);
  const staging = createStaging(target, files);
  for (const { path: name } of files)
    fs.copyFileSync(path.join(`${root}-of-the-source`, name), path.join(staging.tree, name));
  const { manifest } = sealed;
  installStaged({ root: target, staging, manifest, files, sources: [], nowMs });
}

describe("an installed FlashInfer cache", { skip }, () => {
  test("gives ninja nothing to do, and everything once its files are dated anew", () => {
    using folder = temporaryFolder();
    const root = buildOperator(folder);
    moveThroughManifest(root, Date.now() + 5_000);
    assert.match(ninja(root), /no work to do/);
    const now = new Date(Date.now() + 5_000);
    for (const name of ["generated/op.c", "cached_ops/op/op.o", "cached_ops/op/op.so"])
      fs.utimesSync(path.join(root, name), now, now);
    assert.match(ninja(root, "-n"), /op\.o/, "ninja does compare times");
  });

  test("lets no peer date a file later than now", () => {
    using folder = temporaryFolder();
    const root = buildOperator(folder);
    const nowMs = Math.floor(Date.now() / 1_000) * 1_000 - 3_600_000;
    moveThroughManifest(root, nowMs);
    assert.equal(fs.statSync(path.join(root, "cached_ops/op/op.so")).mtimeMs, nowMs);
  });
});
