// SPDX-License-Identifier: Apache-2.0
// Disks that are full, read-only or not ours: the start is cold with the code, nothing is half-installed, and the
// next start on a good disk is warm.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
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

const main = path.resolve(import.meta.dirname, "../../src/cli/main.ts");

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

  test("that we may not write to: the engine starts cold with disk_denied", async (context) => {
    using folder = temporaryFolder();
    const asNobody = commandOfNobody(folder);
    if (asNobody === null) return context.skip("root cannot become somebody who is denied here");
    fs.mkdirSync(folder.path("theirs"), { mode: 0o555 });
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const [program = "", ...words] = [
      ...asNobody,
      process.execPath,
      main,
      "run",
      `--coordinator-address=${coordinator.address}`,
      `--state-dir=${folder.path("mine/state")}`,
      "--families=none",
      `--cache=x=${folder.path("theirs/cache")}`,
      "--",
      "echo",
      "engine ran",
    ];
    const { status, stdout, stderr } = spawnSync(program, words, {
      encoding: "utf8",
      timeout: 60_000,
      env: { ...process.env, HOME: folder.path("mine") },
    });
    assert.equal(status, 0, stderr);
    assert.match(stderr, /cold: x: disk_denied/);
    assert.match(stdout, /engine ran/);
  });
});

/** Words in front of a command whose user owns `mine` and nothing else; null where that cannot be. */
function commandOfNobody(folder: TemporaryFolder): string[] | null {
  const nobody = 65_534;
  fs.mkdirSync(folder.path("mine"));
  // Whoever is not root is denied by the modes alone.
  if (process.getuid?.() !== 0) return [];
  fs.chmodSync(folder.path("."), 0o755);
  fs.chownSync(folder.path("mine"), nobody, nobody);
  const words = ["setpriv", `--reuid=${nobody}`, `--regid=${nobody}`, "--clear-groups"];
  const [program = "", ...rest] = [...words, process.execPath, main, "--version"];
  return spawnSync(program, rest, { timeout: 30_000 }).status === 0 ? words : null;
}
