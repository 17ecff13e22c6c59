// SPDX-License-Identifier: Apache-2.0
// SIGKILL of a target with many files at moments that nobody chose (kill-phases.test.ts and
// install-steps.test.ts choose them): whatever is visible is whole,
// and the next start ends with a complete cache.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { relight, relightJson, startTestCoordinator } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";
import { visibleFiles } from "../support/visible-files.ts";

const filesCount = 1_500;
/** From before the first request to after the receipt, on this machine and on one three times as fast. */
const killAfterMs = [250, 500, 800];

interface Answer {
  readonly caches: readonly {
    state: string;
    code: string | null;
    fetched: number;
    alreadyThere: number;
  }[];
}

function writeTree(folder: TemporaryFolder): void {
  for (let index = 0; index < filesCount; index++) {
    folder.write(
      `source/${index % 97}/k${index}/kernel.bin`,
      randomBytes(1 + ((index * 7_919) % 40_000)),
    );
  }
  folder.write("source/large.bin", randomBytes(9 * 1024 * 1024));
}

describe("a target killed with SIGKILL", () => {
  test("shows only whole files at any moment, and is complete after the next start", async () => {
    using folder = temporaryFolder();
    writeTree(folder);
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const flags = (name: string) => [
      `--coordinator-address=${coordinator.address}`,
      `--state-dir=${folder.path(`${name}-state`)}`,
      `--trust-dir=${folder.path("trust")}`,
      "--model=m",
      "--families=none",
      `--cache=x=${folder.path(name)}`,
      "--settle=0s",
    ];
    await using source = relight(["artifact", "publish", ...flags("source")]);
    await source.printed(/published x/);

    const phases = new Set<string>();
    for (const [round, ms] of killAfterMs.entries()) {
      const target = `target${round}`;
      await using victim = relight(["artifact", "fetch", ...flags(target)]);
      await new Promise((resolve) => setTimeout(resolve, ms));
      victim.child.kill("SIGKILL");
      await victim.exited;
      const visible = visibleFiles(folder.path(target));
      phases.add(
        visible.length === 0 ? "before" : visible.length > filesCount ? "after" : "between",
      );
      assertWhole(folder, target, visible);

      const next = await relightJson<Answer>(["artifact", "fetch", ...flags(target)]);
      assert.equal(next.code, 0, next.output);
      const complete = visibleFiles(folder.path(target));
      assert.equal(complete.length, filesCount + 1);
      assertWhole(folder, target, complete);
      const own = folder.path(`${target}/.relight`);
      assert.deepEqual(fs.readdirSync(path.join(own, "staging")), [], "nothing is left in staging");
      assert.equal(fs.existsSync(path.join(own, "journal.json")), false);
      fs.rmSync(folder.path(target), { recursive: true });
    }
    assert.ok(phases.has("before"), "at least one was killed before anything was visible");
  });
});

function assertWhole(folder: TemporaryFolder, target: string, files: readonly string[]): void {
  for (const file of files) {
    const same = fs
      .readFileSync(folder.path(`${target}/${file}`))
      .equals(fs.readFileSync(folder.path(`source/${file}`)));
    assert.ok(same, `${file} is visible and not whole`);
  }
}
