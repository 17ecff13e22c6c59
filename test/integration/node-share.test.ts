// SPDX-License-Identifier: Apache-2.0
// Several replicas of one node with one cache: one transfer for all, one failure for all.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import { describe, test } from "node:test";
import { hostileSource } from "../support/hostile.ts";
import { freePort, relight, relightJson, startTestCoordinator } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

const startersCount = 8;
const filesCount = 200;

interface Answer {
  readonly caches: readonly {
    state: string;
    code: string | null;
    fetched: number;
    alreadyThere: number;
  }[];
}

/** Processes of one node: own state, one key that signs and is trusted. */
function nodeFlags(
  folder: TemporaryFolder,
  coordinator: string,
  own: { cache: string; state: string },
): string[] {
  return [
    `--coordinator-address=${coordinator}`,
    `--trust-dir=${folder.path("trust")}`,
    `--state-dir=${folder.path(own.state)}`,
    `--cache=x=${folder.path(own.cache)}`,
    "--model=m",
    "--families=none",
    "--settle=0s",
  ];
}

describe("eight replicas of one node", () => {
  test("started together make one transfer, and all end warm", async () => {
    using folder = temporaryFolder();
    for (let index = 0; index < filesCount; index++)
      folder.write(`source/k${index}/kernel.bin`, randomBytes(5_000));
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const flags = (cache: string, state: string) =>
      nodeFlags(folder, coordinator.address, { cache, state });
    await using source = relight(["artifact", "publish", ...flags("source", "s")]);
    await source.printed(/published x/);
    const starters = Array.from({ length: startersCount }, (_, index) =>
      relightJson<Answer>(["artifact", "fetch", ...flags("shared", `t${index}`)]),
    );
    const caches = (await Promise.all(starters)).map(
      ({ value, output }) => value.caches[0] ?? assert.fail(output),
    );
    assert.deepEqual(caches.map(({ state }) => state).sort(), [
      "installed",
      ...Array(startersCount - 1).fill("present"),
    ]);
    assert.equal(
      caches.reduce((sum, cache) => sum + cache.fetched, 0),
      filesCount,
      "every file was fetched once",
    );
    assert.equal(
      fs.readdirSync(folder.path("shared")).filter((name) => name.startsWith("k")).length,
      filesCount,
    );
  });

  test("do not repeat a failure one after the other: seven find the marker of the first", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    folder.write("source/k/kernel.bin", randomBytes(1_000));
    // Peers are sent to a source that takes the connection and never answers.
    await using silent = await hostileSource(() => {});
    const flags = (cache: string, state: string) =>
      nodeFlags(folder, coordinator.address, { cache, state });
    await using source = relight([
      "artifact",
      "publish",
      ...flags("source", "s"),
      `--agent-advertise=${silent.endpoint}`,
    ]);
    await source.printed(/published x/);
    const starters = Array.from({ length: startersCount }, (_, index) =>
      relightJson<Answer>(["artifact", "fetch", ...flags("shared", `t${index}`)]),
    );
    const found = (await Promise.all(starters)).map(
      ({ value, output }) => value.caches[0]?.code ?? assert.fail(output),
    );
    assert.deepEqual(found.sort(), [
      ...Array(startersCount - 1).fill("attempt_failed_recently"),
      "source_stalled",
    ]);
    assert.equal(silent.requests.length, 1, "one attempt for the whole node");
  });

  test("start cold within the budget when a peer stalls, and keep nothing half-done", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    folder.write("source/k/kernel.bin", randomBytes(1_000));
    await using silent = await hostileSource(() => {});
    const flags = (cache: string, state: string) =>
      nodeFlags(folder, coordinator.address, { cache, state });
    await using source = relight([
      "artifact",
      "publish",
      ...flags("source", "s"),
      `--agent-advertise=${silent.endpoint}`,
    ]);
    await source.printed(/published x/);
    await using target = relight([
      "run",
      ...flags("target", "t"),
      "--budget=700ms",
      "--",
      "sh",
      "-c",
      "ls -A $0",
      folder.path("target"),
    ]);
    assert.equal(await target.exited, 0);
    await target.drained;
    assert.match(target.output(), /cold: x: deadline_exceeded/);
    assert.equal(fs.readdirSync(folder.path("target/.relight/staging")).length, 0);
  });

  test("fetch from a second source when the first refuses every connection", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    folder.write("source/k/kernel.bin", randomBytes(1_000));
    const flags = (cache: string, state: string) =>
      nodeFlags(folder, coordinator.address, { cache, state });
    const publish = (name: string, more: string[]) =>
      relight(["artifact", "publish", ...flags("source", name), ...more]);
    await using dead = publish("dead", [`--agent-advertise=http://127.0.0.1:${await freePort()}`]);
    await using live = publish("live", []);
    await Promise.all([dead.printed(/published x/), live.printed(/published x/)]);
    const { value, code, output } = await relightJson<Answer>([
      "artifact",
      "fetch",
      ...flags("target", "t"),
    ]);
    assert.equal(code, 0, output);
    assert.equal(value.caches[0]?.state, "installed");
  });
});
