// SPDX-License-Identifier: Apache-2.0
// `relight run` with real processes: coordinator, replicas under it, and an engine that compiles real C.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import type { BootRecord } from "../../src/agent/ledger.ts";
import {
  freePort,
  type RelightProcess,
  relight,
  relightJson,
  startTestCoordinator,
} from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

const engine = path.resolve(import.meta.dirname, "../../examples/jit-engine/engine.py");
const kernels = 3;

interface Replica extends RelightProcess {
  readonly port: number;
  readonly cache: string;
  readonly state: string;
}

async function startReplica(
  folder: TemporaryFolder,
  name: string,
  options: { coordinator: string; flags?: string[] },
): Promise<Replica> {
  const port = await freePort();
  const cache = folder.path(`${name}/cache`);
  const state = folder.path(`${name}/state`);
  const process = relight([
    "run",
    `--coordinator-address=${options.coordinator}`,
    `--node-id=${name}`,
    `--state-dir=${state}`,
    `--trust-dir=${folder.path("trust")}`,
    "--model=test",
    "--families=none",
    `--cache=jit=${cache}`,
    `--health-url=http://127.0.0.1:${port}/health`,
    "--settle=200ms",
    "--delta-interval=300ms",
    ...(options.flags ?? []),
    "--",
    "python3",
    engine,
    `--port=${port}`,
    `--cache=${cache}`,
    `--kernels=${kernels}`,
  ]);
  return { ...process, port, cache, state };
}

async function health(replica: Replica): Promise<{ compiled: number; checksum: string }> {
  return (await (await fetch(`http://127.0.0.1:${replica.port}/health`)).json()) as {
    compiled: number;
    checksum: string;
  };
}

async function bootOf(replica: Replica): Promise<BootRecord> {
  return (await relightJson<BootRecord>(["boot", "show", `--state-dir=${replica.state}`])).value;
}

async function until(what: string, isDone: () => Promise<boolean>): Promise<void> {
  for (let attempt = 0; attempt < 600; attempt++) {
    if (await isDone()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`Waited too long for ${what}`);
}

describe("relight run", () => {
  test("warms B from A, C also with what A compiled after it was ready, and withdraws at the end", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    await using a = await startReplica(folder, "a", { coordinator: coordinator.address });
    await a.printed(/published jit: \d+ files/);
    assert.equal((await health(a)).compiled, kernels);

    await using b = await startReplica(folder, "b", { coordinator: coordinator.address });
    await b.printed(/published jit/);
    assert.equal((await health(b)).compiled, 0, "B compiles nothing");
    assert.equal((await health(b)).checksum, (await health(a)).checksum);
    const boot = await bootOf(b);
    assert.equal(boot.caches[0]?.state, "installed");
    assert.equal(boot.caches[0]?.hits?.compiledAnyway, 0);
    assert.ok(boot.caches[0]?.hits?.hit === kernels || boot.caches[0]?.hits?.hit === null);

    await (await fetch(`http://127.0.0.1:${a.port}/compile?shape=7`)).text();
    // The library and its source settle together or one look apart.
    await a.printed(/published jit: 2 new files|(published jit: 1 new file[\s\S]*){2}/);
    await using c = await startReplica(folder, "c", { coordinator: coordinator.address });
    await c.printed(/healthy/);
    await (await fetch(`http://127.0.0.1:${c.port}/compile?shape=7`)).text();
    assert.equal((await health(c)).compiled, 0, "the delta has reached C");

    for (const replica of [a, b, c]) replica.child.kill("SIGTERM");
    for (const replica of [a, b, c])
      assert.equal(await replica.exited, 143, "the engine's exit is ours");
    const left = await relightJson<{ sources: unknown[] }>([
      "source",
      "list",
      `--coordinator-address=${coordinator.address}`,
    ]);
    assert.deepEqual(left.value.sources, [], "whoever said goodbye is not offered");
  });

  test("says in which facts the nearest source differs when none fits", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    folder.write("there/kernel.bin", "compiled for another model");
    const flags = (model: string, cache: string) => [
      `--coordinator-address=${coordinator.address}`,
      `--state-dir=${folder.path("state")}`,
      `--model=${model}`,
      "--families=none",
      `--cache=jit=${folder.path(cache)}`,
    ];
    await using publisher = relight([
      "artifact",
      "publish",
      "--settle=0s",
      ...flags("one", "there"),
    ]);
    await publisher.printed(/published jit/);
    const { output } = await relightJson(["artifact", "fetch", ...flags("two", "here")]);
    assert.match(output, /the nearest differs in model: one there, two here"/);
  });

  test("with --json tells the boot on standard error, and knows the model from the engine's command", async () => {
    using folder = temporaryFolder();
    folder.write("vllm", "#!/bin/sh\necho of the engine\nexit 3\n");
    fs.chmodSync(folder.path("vllm"), 0o755);
    const told = spawnSync(
      process.execPath,
      [
        path.resolve(import.meta.dirname, "../../src/cli/main.ts"),
        "run",
        "--json",
        "--coordinator-address=127.0.0.1:1",
        `--state-dir=${folder.path("state")}`,
        `--cache=jit=${folder.path("cache")}`,
        "--families=none",
        "--",
        folder.path("vllm"),
        "serve",
        "org/model",
      ],
      { encoding: "utf8", timeout: 60_000 },
    );
    assert.equal(told.status, 3, told.stderr);
    assert.equal(told.stdout, "of the engine\n", "standard output is the engine's");
    const lines = told.stderr.split("\n").filter((line) => line.includes('"boot"'));
    const { event, outcome, boot } = JSON.parse(lines.at(-1) ?? "null");
    assert.deepEqual([event, outcome, boot.exitCode], ["ended", "cold", 3]);
    assert.equal(boot.caches[0].code, "coordinator_unreachable");
    assert.equal(boot.model, "org/model");
    const state = `--state-dir=${folder.path("state")}`;
    const { value: list } = await relightJson<{ boots: { bootId: string }[] }>([
      "boot",
      "list",
      state,
    ]);
    assert.deepEqual(
      list.boots.map(({ bootId }) => bootId),
      [boot.bootId],
    );
    const { value: why } = await relightJson<{ sentences: string[] }>(["boot", "why", state]);
    assert.match(why.sentences.join(" "), /was cold and was never seen healthy.*coordinator/);
  });

  test("starts the engine cold at once when no coordinator answers, says so, and passes its exit code on", async () => {
    using folder = temporaryFolder();
    const cache = folder.path("cache");
    await using process = relight([
      "run",
      `--coordinator-address=127.0.0.1:${await freePort()}`,
      `--state-dir=${folder.path("state")}`,
      "--families=none",
      `--cache=x=${cache}`,
      "--",
      "sh",
      "-c",
      "echo engine ran; exit 7",
    ]);
    assert.equal(await process.exited, 7);
    await process.drained;
    assert.match(process.output(), /engine ran/);
    assert.match(process.output(), /cold: x: coordinator_unreachable/);
    const why = await relightJson<{ sentences: string[] }>([
      "boot",
      "why",
      `--state-dir=${folder.path("state")}`,
    ]);
    assert.match(why.value.sentences.join(" "), /coordinator/i);
  });

  test("starts cold with the code when the cache's place is a file, and leaves the file alone", async () => {
    using folder = temporaryFolder();
    folder.write("cache", "precious");
    await using coordinator = await startTestCoordinator(folder.path("store"));
    await using process = relight([
      "run",
      `--coordinator-address=${coordinator.address}`,
      `--state-dir=${folder.path("state")}`,
      "--families=none",
      `--cache=x=${folder.path("cache")}`,
      "--",
      "true",
    ]);
    assert.equal(await process.exited, 0);
    await process.drained;
    assert.match(process.output(), /cold: .*target_obstructed/);
    assert.equal(fs.readFileSync(folder.path("cache"), "utf8"), "precious");
  });

  test("does not run a command that does not exist, and says which", async () => {
    using folder = temporaryFolder();
    await using process = relight([
      "run",
      `--state-dir=${folder.path("state")}`,
      "--install=false",
      "--families=none",
      "--",
      "/no/such/engine",
    ]);
    assert.equal(await process.exited, 127);
    await process.drained;
    assert.match(process.output(), /engine_start_failed/);
  });

  test("forwards a signal to the engine and ends with the engine's answer", async () => {
    using folder = temporaryFolder();
    await using process = relight([
      "run",
      `--state-dir=${folder.path("state")}`,
      "--install=false",
      "--families=none",
      "--",
      "sh",
      "-c",
      "trap 'echo drained; exit 5' TERM; echo up; while :; do sleep 0.1; done",
    ]);
    await process.printed(/^up$/m);
    process.child.kill("SIGTERM");
    assert.equal(await process.exited, 5);
    await process.drained;
    assert.match(process.output(), /drained/);
  });

  test("gives the engine nothing that tells where keys lie or how to join", async () => {
    using folder = temporaryFolder();
    const trust = folder.path("trust");
    await using process = relight(
      [
        "run",
        `--state-dir=${folder.path("state")}`,
        "--install=false",
        "--families=none",
        `--cache=x=${folder.path("cache")}`,
        "--",
        "sh",
        "-c",
        "env; for each in /proc/self/fd/*; do readlink $each; done; echo END",
      ],
      { RELIGHT_TRUST_DIR: trust, RELIGHT_TRUST_ENVIRONMENT: "production", KEPT: "yes" },
    );
    assert.equal(await process.exited, 0);
    await process.drained;
    assert.match(process.output(), /^KEPT=yes$/m);
    assert.match(process.output(), /^END$/m);
    assert.doesNotMatch(process.output(), /RELIGHT_TRUST/);
    assert.ok(fs.existsSync(path.join(trust, "author.pem")), "the agent has its key");
    assert.doesNotMatch(process.output(), /author\.pem/);
    assert.equal(fs.statSync(path.join(trust, "author.pem")).mode & 0o777, 0o600);
  });

  test("a replica killed with SIGKILL is not offered five seconds later", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    await using a = await startReplica(folder, "a", { coordinator: coordinator.address });
    await a.printed(/published jit/);
    a.child.kill("SIGKILL");
    await a.exited;
    await until("the loss to be noticed", async () => {
      const found = await relightJson<{ caches: { code: string | null }[] }>([
        "artifact",
        "fetch",
        `--coordinator-address=${coordinator.address}`,
        `--state-dir=${folder.path("d")}`,
        `--trust-dir=${folder.path("trust")}`,
        "--model=test",
        "--families=none",
        `--cache=jit=${folder.path("d/cache")}`,
      ]);
      return found.value.caches[0]?.code === "no_source";
    });
  });
});
