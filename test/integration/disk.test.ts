// SPDX-License-Identifier: Apache-2.0
// Disks that are full or read-only: the start is cold with the code, nothing is half-installed, and the
// next start on a good disk is warm.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { relight, relightJson, startTestCoordinator } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

interface Answer {
  readonly caches: readonly { state: string; code: string | null }[];
}

/** A small disk of its own; null where mounting is not allowed. */
function mountDisk(folder: string, options: string): Disposable | null {
  fs.mkdirSync(folder, { recursive: true });
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", folder], { stdio: "pipe" });
  } catch {
    // Not root, or in a container without mounts: the test says so and is skipped.
    return null;
  }
  return { [Symbol.dispose]: () => execFileSync("umount", ["-l", folder]) };
}

async function publish(folder: TemporaryFolder, coordinator: string) {
  for (let index = 0; index < 20; index++)
    folder.write(`source/k${index}/kernel.bin`, randomBytes(200_000));
  const source = relight(["artifact", "publish", ...flags(folder, coordinator, "source")]);
  await source.printed(/published x/);
  return source;
}

function flags(folder: TemporaryFolder, coordinator: string, cache: string): string[] {
  return [
    `--coordinator-address=${coordinator}`,
    `--state-dir=${folder.path(`state-${path.basename(cache)}`)}`,
    // One node: one key, which signs and is trusted.
    `--trust-dir=${folder.path("trust")}`,
    "--model=m",
    "--families=none",
    `--cache=x=${folder.path(cache)}`,
    "--settle=0s",
  ];
}

describe("a target's disk", () => {
  test("that is full: cold with disk_full, nothing visible, warm once there is room", async (context) => {
    using folder = temporaryFolder();
    using disk = mountDisk(folder.path("disk"), "size=2m");
    if (disk === null) return context.skip("mounting a small disk needs root");
    await using coordinator = await startTestCoordinator(folder.path("store"));
    await using _source = await publish(folder, coordinator.address);
    const full = await relightJson<Answer>([
      "artifact",
      "fetch",
      ...flags(folder, coordinator.address, "disk/cache"),
    ]);
    assert.equal(full.value.caches[0]?.code, "disk_full", full.output);
    const visible = fs.readdirSync(folder.path("disk/cache")).filter((name) => name !== ".relight");
    assert.deepEqual(visible, []);
    assert.deepEqual(
      fs.readdirSync(folder.path("disk/cache/.relight/staging")),
      [],
      "the room is given back",
    );

    execFileSync("mount", ["-o", "remount,size=64m", folder.path("disk")]);
    fs.rmSync(folder.path("disk/cache/.relight/failed.json"), { force: true });
    const roomy = await relightJson<Answer>([
      "artifact",
      "fetch",
      ...flags(folder, coordinator.address, "disk/cache"),
    ]);
    assert.equal(roomy.value.caches[0]?.state, "installed", roomy.output);
  });

  test("that is read-only: the engine starts cold with disk_read_only", async (context) => {
    using folder = temporaryFolder();
    using disk = mountDisk(folder.path("disk"), "size=2m,ro");
    if (disk === null) return context.skip("mounting a read-only disk needs root");
    await using coordinator = await startTestCoordinator(folder.path("store"));
    await using _source = await publish(folder, coordinator.address);
    await using target = relight([
      "run",
      ...flags(folder, coordinator.address, "disk/cache"),
      "--",
      "echo",
      "engine ran",
    ]);
    assert.equal(await target.exited, 0);
    await target.drained;
    assert.match(target.output(), /cold: x: disk_read_only/);
    assert.match(target.output(), /engine ran/);
  });
});
