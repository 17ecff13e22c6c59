// SPDX-License-Identifier: Apache-2.0
// `relight model publish` and `relight model fetch` with real processes: folders as hubs leave them,
// targets and sources that are killed, checkpoints that nobody should take.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { MiB } from "../../src/core/units.ts";
import { asHubSnapshot, shardName, writeCheckpoint } from "../support/checkpoint.ts";
import { holdingProxy } from "../support/holding-proxy.ts";
import {
  freePort,
  type RelightProcess,
  relight,
  relightJson,
  startTestCoordinator,
} from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

interface Fetched {
  readonly state: string;
  readonly code: string | null;
  readonly fetchedBytes: number;
  readonly resumedBytes: number;
  readonly model: string;
  readonly revision: string;
}

let shared: TemporaryFolder;
let coordinator: Awaited<ReturnType<typeof startTestCoordinator>>;

before(async () => {
  shared = temporaryFolder();
  coordinator = await startTestCoordinator(shared.path("store"));
});
after(async () => {
  await coordinator[Symbol.asyncDispose]();
  shared[Symbol.dispose]();
});

function flags(folder: TemporaryFolder, node: string): string[] {
  return [
    `--coordinator-address=${coordinator.address}`,
    `--state-dir=${folder.path(`state-${node}`)}`,
    `--trust-dir=${shared.path("trust")}`,
  ];
}

async function publish(
  folder: TemporaryFolder,
  dir: string,
  more: readonly string[],
): Promise<RelightProcess> {
  const args = ["model", "publish", dir, "--settle=0s", ...flags(folder, "source"), ...more];
  const process = relight(args);
  await process.printed(/published checkpoint/);
  return process;
}

const fetchJson = (folder: TemporaryFolder, dir: string, more: readonly string[]) =>
  relightJson<Fetched>(["model", "fetch", dir, ...flags(folder, "target"), ...more]);

/** Relative paths below a folder, without Relight's own. */
function listed(dir: string): string[] {
  return fs
    .readdirSync(dir, { recursive: true, encoding: "utf8" })
    .filter((name) => !name.startsWith(".relight"))
    .sort();
}

function assertSame(left: string, right: string, names: readonly string[]): void {
  for (const name of names) {
    const stat = fs.lstatSync(path.join(right, name));
    assert.ok(stat.isFile(), `${name} is a file of its own`);
    const same = fs
      .readFileSync(path.join(left, name))
      .equals(fs.readFileSync(path.join(right, name)));
    assert.ok(same, `${name} has its source's bytes`);
  }
}

/** Bytes of weights that were written into staging; a piece may lie behind a hole. */
function stagedBytes(dir: string): number {
  const staging = path.join(dir, ".relight/staging");
  if (!fs.existsSync(staging)) return 0;
  return fs
    .readdirSync(staging, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".safetensors"))
    .map((name) => fs.statSync(path.join(staging, name), { throwIfNoEntry: false })?.blocks ?? 0)
    .reduce((sum, blocks) => sum + 512 * blocks, 0);
}

async function until(what: string, isDone: () => boolean): Promise<void> {
  for (let attempt = 0; attempt < 10_000; attempt++) {
    if (isDone()) return;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  throw new Error(`Waited too long for ${what}`);
}

// Each test has folders and a model of its own; most of their time is processes that start.
describe("relight model", { concurrency: 2 }, () => {
  test("brings a hub's snapshot as files, leaves out pickles and links that lead elsewhere, and serves on", async () => {
    using folder = temporaryFolder();
    writeCheckpoint(folder.path("plain"), { shards: 2, bytes: 5 * MiB });
    folder.write("plain/pytorch_model.bin", "a pickle");
    folder.write("plain/modeling_own.py", "print()");
    const told = { model: "org/name", revision: "0123abcd" };
    const snapshot = asHubSnapshot(folder.path("plain"), folder.path("hub"), told);
    folder.write("secret", "not for sale");
    fs.symlinkSync(folder.path("secret"), path.join(snapshot, "leak.json"));
    const other = path.join(folder.path("hub"), "models--other", "blobs", "x");
    folder.write("hub/models--other/blobs/x", "of another repository");
    fs.symlinkSync(other, path.join(snapshot, "other.json"));
    await using source = await publish(folder, snapshot, []);
    for (const left of [
      /pytorch_model\.bin: a pickle is code/,
      /modeling_own\.py: it is code/,
      /leak\.json: a link that leads elsewhere/,
      /other\.json: a link that leads elsewhere/,
    ])
      assert.match(source.output(), left);

    const target = folder.path("target");
    const more = ["--model=org/name", "--revision=0123abcd"];
    const first = ["model", "fetch", target, ...flags(folder, "target"), ...more, "--serve"];
    await using mirror = relight(first);
    await mirror.printed(/published checkpoint/);
    const names = [shardName(0, 2), shardName(1, 2), "config.json", "model.safetensors.index.json"];
    assert.deepEqual(listed(target), names.sort());
    assertSame(snapshot, target, names);

    source.child.kill("SIGKILL");
    const second = await relightJson<Fetched>([
      ...["model", "fetch", folder.path("second"), ...flags(folder, "second"), ...more],
    ]);
    assert.equal(second.value.state, "installed", second.output);
    assertSame(target, folder.path("second"), names);
  });

  test("finds what it has without asking anybody, and without reading it", async () => {
    using folder = temporaryFolder();
    writeCheckpoint(folder.path("source"), { shards: 2, bytes: 5 * MiB });
    const target = folder.path("target");
    {
      await using _source = await publish(folder, folder.path("source"), ["--model=again"]);
      const { value, output } = await fetchJson(folder, target, ["--model=again"]);
      assert.equal(value.state, "installed", output);
    }
    // What it would now read is not what it was; its size, time and inode are.
    const weights = path.join(target, shardName(0, 2));
    const { atime, mtime } = fs.statSync(weights);
    fs.writeFileSync(weights, Buffer.alloc(fs.statSync(weights).size, 7), { flag: "r+" });
    fs.utimesSync(weights, atime, mtime);
    const alone = [...flags(folder, "target"), "--coordinator-address=127.0.0.1:1"].slice(1);
    const again = await relightJson<Fetched>(["model", "fetch", target, ...alone, "--model=again"]);
    assert.equal(again.code, 0, again.output);
    assert.equal(again.value.state, "present");
    fs.utimesSync(weights, atime, new Date());
    const changed = await relightJson<Fetched>([
      "model",
      "fetch",
      target,
      ...alone,
      "--model=again",
    ]);
    assert.equal(changed.value.state, "cold", "a changed file is not what was installed");
  });

  test("goes on where a killed target stopped", async () => {
    using folder = temporaryFolder();
    writeCheckpoint(folder.path("source"), { shards: 4, bytes: 40 * MiB });
    const port = await freePort();
    await using proxy = await holdingProxy(() => port);
    await using _source = await publish(folder, folder.path("source"), [
      "--model=cut",
      `--agent-listen=127.0.0.1:${port}`,
      `--agent-advertise=http://127.0.0.1:${proxy.port}`,
    ]);
    proxy.stopAfter(60 * MiB);
    const target = folder.path("target");
    {
      const args = ["model", "fetch", target, "--model=cut", ...flags(folder, "target")];
      await using killed = relight(args);
      // More than the two threads can have begun to write.
      await until("the first pieces", () => stagedBytes(target) >= 12 * MiB);
      killed.child.kill("SIGKILL");
      await killed.exited;
    }
    assert.deepEqual(listed(target), [], "nothing has its name before everything is there");
    proxy.release();
    const { value, output } = await fetchJson(folder, target, ["--model=cut"]);
    assert.equal(value.state, "installed", output);
    assert.ok(value.resumedBytes >= 4 * MiB, `${value.resumedBytes} bytes were kept`);
    const total = listed(folder.path("source")).reduce(
      (sum, name) => sum + fs.statSync(path.join(folder.path("source"), name)).size,
      0,
    );
    assert.equal(value.fetchedBytes + value.resumedBytes, total);
    assertSame(folder.path("source"), target, listed(folder.path("source")));
    assert.deepEqual(fs.readdirSync(path.join(target, ".relight/staging")), []);
  });

  test("goes on with another source when one is killed while it is asked for pieces", async () => {
    using folder = temporaryFolder();
    writeCheckpoint(folder.path("source"), { shards: 4, bytes: 40 * MiB });
    const port = await freePort();
    await using proxy = await holdingProxy(() => port);
    await using first = await publish(folder, folder.path("source"), [
      "--model=two",
      `--agent-listen=127.0.0.1:${port}`,
      `--agent-advertise=http://127.0.0.1:${proxy.port}`,
    ]);
    await using _second = await publish(folder, folder.path("source"), ["--model=two"]);
    const target = folder.path("target");
    const asked = proxy.held(/\/pieces/);
    const fetching = fetchJson(folder, target, ["--model=two"]);
    await asked;
    first.child.kill("SIGKILL");
    const { value, output } = await fetching;
    assert.equal(value.state, "installed", output);
    assertSame(folder.path("source"), target, listed(folder.path("source")));
  });

  test("does not publish what is no checkpoint, and says what is wrong", async () => {
    using folder = temporaryFolder();
    const refused = async (name: string, reason: RegExp, exit: number) => {
      const dir = folder.path(name);
      const args = ["model", "publish", dir, "--model=bad", "--settle=0s"];
      await using process = relight([...args, ...flags(folder, name)]);
      assert.equal(await process.exited, exit, process.output());
      await process.drained;
      assert.match(process.output(), reason);
    };
    writeCheckpoint(folder.path("torn"), { shards: 2, bytes: MiB });
    fs.truncateSync(folder.path(`torn/${shardName(1, 2)}`), MiB / 2);
    writeCheckpoint(folder.path("short"), { shards: 2, bytes: MiB });
    fs.rmSync(folder.path(`short/${shardName(0, 2)}`));
    folder.write("empty/config.json", "{}");
    await Promise.all([
      refused("torn", /model-00002-of-00002\.safetensors": its tensors have/, 34),
      refused("short", /index says that .* is in "model-00001-of-00002/, 34),
      refused("empty", /it has no weights/, 34),
      refused("nowhere", /there is no such folder/, 4),
    ]);
  });

  test("refuses code that was not asked for, and files of the target's own in the way", async () => {
    using folder = temporaryFolder();
    writeCheckpoint(folder.path("source"), { shards: 1, bytes: 5 * MiB });
    folder.write("source/pytorch_model.bin", "a pickle");
    await using _source = await publish(folder, folder.path("source"), [
      ...["--model=code", "--revision=a", "--allow-code"],
    ]);
    const target = folder.path("target");
    const more = ["--model=code", "--revision=a"];
    const [other, refused] = await Promise.all([
      fetchJson(folder, target, ["--model=code", "--revision=b"]),
      fetchJson(folder, target, more),
    ]);
    assert.equal(other.value.code, "no_source", "another revision is another checkpoint");
    assert.equal(refused.value.code, "code_unwanted", refused.output);
    assert.equal(refused.code, 39);
    assert.deepEqual(listed(target), []);

    folder.write("target/config.json", "of the target's own ");
    const obstructed = await fetchJson(folder, target, [...more, "--allow-code"]);
    assert.equal(obstructed.value.code, "target_obstructed", obstructed.output);
    assert.deepEqual(listed(target), ["config.json"]);
    fs.rmSync(path.join(target, "config.json"));
    const taken = await fetchJson(folder, target, [...more, "--allow-code"]);
    assert.equal(taken.value.state, "installed", taken.output);
    assert.ok(listed(target).includes("pytorch_model.bin"));
  });
});
