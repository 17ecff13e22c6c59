// SPDX-License-Identifier: Apache-2.0
// The proof of a hit on real mounts: what was read is seen, what was not is not, and a mount without
// access times answers "unknown".

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { temporaryFolder } from "../../test/support/temporary-folder.ts";
import { blake3Hex, wholeDigest } from "../core/digest.ts";
import { countHits, keepsAccessTimes } from "./hits.ts";
import { openRoot } from "./install.ts";
import { customFamily } from "./kinds/custom.ts";
import type { Receipt } from "./receipt.ts";

const mtimeMs = 1_790_000_000_000;
const family = customFamily("any", "/any");

/** Two installed kernels as an installation leaves them: access time before modification time. */
function install(root: string): Receipt[] {
  const files = ["k1/kernel.so", "k2/kernel.so"].map((name) => {
    const file = path.join(root, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, name);
    fs.utimesSync(file, new Date(mtimeMs - 3_600_000), new Date(mtimeMs));
    return {
      path: name,
      form: "plain" as const,
      size: name.length,
      digest: wholeDigest(blake3Hex(Buffer.from(name))),
      mtimeMs,
    };
  });
  const receipt = {
    format: "relight.receipt.v1" as const,
    artifactId: "0".repeat(64),
    family: "any",
    installedAtMs: mtimeMs,
    sources: [],
    files,
    trust: null,
  };
  return [receipt as Receipt];
}

describe("countHits()", () => {
  test("counts what was read, and what was compiled although it was not there before", (context) => {
    using folder = temporaryFolder();
    const root = openRoot(folder.path("cache"));
    if (!keepsAccessTimes(path.join(root, ".relight")))
      return context.skip("this mount keeps no access times");
    const receipts = install(root);
    const before = new Set(["old/kernel.so"]);
    const now = ["k1/kernel.so", "k2/kernel.so", "old/kernel.so", "new/kernel.so"];
    assert.deepEqual(countHits({ root, family, receipts, before, now }), {
      hit: 0,
      installed: 2,
      compiledAnyway: 1,
    });
    fs.readFileSync(path.join(root, "k2/kernel.so"));
    assert.equal(countHits({ root, family, receipts, before, now }).hit, 1);
  });

  test("answers unknown on a mount without access times", (context) => {
    using folder = temporaryFolder();
    fs.mkdirSync(folder.path("disk"));
    try {
      execFileSync(
        "mount",
        ["-t", "tmpfs", "-o", "noatime,size=1m", "tmpfs", folder.path("disk")],
        { stdio: "pipe" },
      );
    } catch {
      return context.skip("mounting a disk needs root");
    }
    try {
      const root = openRoot(folder.path("disk/cache"));
      const receipts = install(root);
      fs.readFileSync(path.join(root, "k1/kernel.so"));
      assert.equal(countHits({ root, family, receipts, before: new Set(), now: [] }).hit, null);
    } finally {
      execFileSync("umount", ["-l", folder.path("disk")]);
    }
  });
});
