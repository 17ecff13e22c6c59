// SPDX-License-Identifier: Apache-2.0
// The LMDB store on a real disk: the contract, what survives a closed and a killed process, and what
// it does with a directory that is damaged, foreign, newer or taken.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";
import { open as openRaw } from "lmdb";
import { openLmdbStore } from "../../src/store/lmdb.ts";
import type { Store } from "../../src/store/store.ts";
import { storeContract } from "../contracts/store.ts";
import { rejectsWith } from "../support/rejects.ts";
import { boot, sourceHead } from "../support/source-head.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const folder = temporaryFolder();
after(() => folder[Symbol.dispose]());
const signal = new AbortController().signal;
let opened = 0;

storeContract("lmdb", async (limits) => openLmdbStore(folder.path(`contract-${++opened}`), limits));

test("records and boots are there after the store was closed and opened again", async () => {
  const at = folder.path("reopened");
  {
    await using store = await openLmdbStore(at);
    await fill(store, 10);
    for (const bootId of ["a", "b", "c"]) await store.putBoot(boot({ bootId }), signal);
  }
  await using store = await openLmdbStore(at, { bootsMax: 3, bootBytesMax: 1_000 });
  assert.equal((await store.ofSource(sourceHead().sourceId, signal)).length, 10);
  await store.putBoot(boot({ bootId: "d" }), signal);
  const boots = await store.boots(10, signal);
  assert.deepEqual(
    boots.map(({ bootId }) => bootId),
    ["d", "c", "b"],
  );
});

test("openLmdbStore() refuses a directory that another holder has open", async () => {
  const at = folder.path("taken");
  await using _store = await openLmdbStore(at);
  await rejectsWith("lock_timeout", openLmdbStore(at));
});

test("openLmdbStore() says store_newer for a format above its own", async () => {
  const at = folder.path("newer");
  await writeMeta(at, 2);
  await rejectsWith("store_newer", openLmdbStore(at));
});

test("openLmdbStore() says store_corrupt for a format that is no number", async () => {
  const at = folder.path("odd");
  await writeMeta(at, "one");
  await rejectsWith("store_corrupt", openLmdbStore(at));
});

const damages: Readonly<Record<string, (file: string) => void>> = {
  "bytes that are no LMDB file": (file) => writeFileSync(file, Buffer.alloc(65_536, 7)),
  "a few bytes": (file) => writeFileSync(file, "hello"),
  "half of the file": (file) => truncateSync(file, Math.floor(readFileSync(file).length / 2)),
  "every page scrambled": (file) => writeFileSync(file, scrambled(readFileSync(file), 8_192)),
  "the two head pages scrambled": (file) => writeFileSync(file, scrambled(readFileSync(file), 16)),
};

for (const [name, damage] of Object.entries(damages)) {
  test(`openLmdbStore() says store_corrupt and lives when it finds ${name}`, async () => {
    const at = folder.path(`damaged ${name}`);
    {
      await using store = await openLmdbStore(at);
      await fill(store, 500);
    }
    damage(`${at}/data.mdb`);
    await rejectsWith("store_corrupt", openLmdbStore(at));
  });
}

test("a record of another form is store_corrupt, not a missing record", async () => {
  const at = folder.path("foreign record");
  const { sourceId, workerId } = sourceHead();
  {
    await using store = await openLmdbStore(at);
    await fill(store, 1);
  }
  const root = openRaw({ path: at, maxDbs: 16 });
  const heads = root.openDB({ name: "heads", encoding: "msgpack", useVersions: true });
  await heads.put([sourceId, workerId], ["ready", "nonsense"], 7);
  await root.close();
  await using store = await openLmdbStore(at);
  await rejectsWith("store_corrupt", store.get({ sourceId, workerId }, signal));
  await rejectsWith("store_corrupt", store.ofSource(sourceId, signal));
});

test("openLmdbStore() says target_obstructed when a file stands where the directory belongs", async () => {
  folder.write("file", "in the way");
  await rejectsWith("target_obstructed", openLmdbStore(folder.path("file")));
});

test("a disk that takes no more is store_unavailable, and what was acknowledged stays", async () => {
  const program = join(import.meta.dirname, "../support/lmdb-filler.ts");
  const at = folder.path("full");
  // 4,096 blocks of 512 bytes for any file.
  const command = 'ulimit -f 4096; exec "$0" "$@"';
  const words = ["-c", command, process.execPath, program, at];
  const { stdout } = await promisify(execFile)("sh", words, { timeout: 60_000 });
  const { count, code, listed }: Readonly<Record<string, unknown>> = JSON.parse(stdout);
  assert.equal(code, "store_unavailable");
  assert.ok(typeof count === "number" && count > 10, `${count} written`);
  assert.equal(listed, count);
  await using store = await openLmdbStore(at);
  assert.equal((await store.ofSource(sourceHead().sourceId, signal)).length, count);
});

async function fill(store: Store, count: number): Promise<void> {
  const heads = Array.from({ length: count }, (_, index) =>
    sourceHead({ workerId: `worker-${index}` }),
  );
  const body = Buffer.alloc(1_000, 1);
  await Promise.all(
    heads.map((head) => store.put({ head, body, replaces: null, when: "flushed" }, signal)),
  );
}

async function writeMeta(at: string, format: unknown): Promise<void> {
  const root = openRaw({ path: at, maxDbs: 16 });
  await root.openDB({ name: "meta", encoding: "msgpack" }).put("format", format);
  await root.close();
}

function scrambled(bytes: Buffer, from: number): Buffer {
  const last = from < 8_192 ? 8_192 : bytes.length;
  for (let at = from; at < last; at += 5) bytes[at] = (bytes[at] ?? 0) ^ 0x55;
  return bytes;
}
