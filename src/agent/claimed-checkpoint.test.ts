// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { shardName, writeCheckpoint } from "../../test/support/checkpoint.ts";
import { type TemporaryFolder, temporaryFolder } from "../../test/support/temporary-folder.ts";
import { readDigestRecord } from "../artifacts/digest-record.ts";
import { hashChunks } from "../artifacts/hash-file.ts";
import type { HashPool } from "../artifacts/hash-pool.ts";
import { finishingOf } from "../artifacts/install.ts";
import { checkpointFamily } from "../artifacts/kinds/checkpoint.ts";
import { listPieces, type SealedManifest } from "../artifacts/manifest.ts";
import { type Seal, seal } from "../artifacts/seal.ts";
import { chunkBytes } from "../core/pieces.ts";
import { MiB } from "../core/units.ts";
import { type Code, RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { CheckpointSealer } from "./checkpoint-sealer.ts";
import type { ClaimedCache } from "./claimed-cache.ts";
import { claimCheckpoint, takesBack } from "./claimed-checkpoint.ts";

/** Long enough for every wait here, so that a lock that is never released fails and does not hang. */
const signal = AbortSignal.timeout(20_000);

/** The pool without threads; counts what it reads. */
class CountingPool implements HashPool {
  bytes = 0;

  async hash(files: Parameters<HashPool["hash"]>[0]): ReturnType<HashPool["hash"]> {
    return files.map(({ path: file, size }) => {
      this.bytes += size;
      const handle = fs.openSync(file, "r");
      const chunks = hashChunks(handle, { offset: 0, length: size }, Buffer.alloc(chunkBytes));
      fs.closeSync(handle);
      return chunks;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

const familyOf = (folder: string) => checkpointFamily({ folder, allowsCode: false, rank: null });

function sealed(root: string): Seal {
  const family = familyOf(root);
  const result = seal({ root, family, excluded: [], settledBeforeMs: Date.now() + 60_000 });
  assert.ok(result);
  return result;
}

function optionsFor(folder: TemporaryFolder, pool: HashPool) {
  return { pool, stateFolder: folder.path("state"), onProgress: () => {} };
}

async function claim(
  folder: TemporaryFolder,
  pool = new CountingPool(),
): Promise<ClaimedCache & { root: string; pool: CountingPool }> {
  const root = folder.path("target");
  const cache = { family: familyOf(root), root, excluded: [] };
  const asked = { clock: systemClock, signal, recheck: () => null, onUndone: () => {} };
  const claimed = await claimCheckpoint(optionsFor(folder, pool))(cache, asked);
  return Object.assign(claimed, { root, pool });
}

/** Stages what the source has, changed by `spoil`, and installs it. */
async function install(
  claimed: ClaimedCache,
  source: { root: string; manifest: SealedManifest },
  spoil: (tree: string) => void = () => {},
): Promise<void> {
  const { manifest } = source;
  const files = await claimed.missing(manifest, signal);
  const staging = await claimed.stage(manifest, files, signal);
  for (const { path: name } of files)
    fs.copyFileSync(path.join(source.root, name), path.join(staging.tree, name));
  spoil(staging.tree);
  try {
    const finishing = finishingOf(manifest, Date.now());
    const told = { sources: [], trust: null, statement: undefined };
    const order = { staging, manifest, files, finishing, ...told };
    await claimed.install({ ...order, nowMs: Date.now() });
  } catch (thrown) {
    assert.ok(thrown instanceof RelightError);
    claimed.unstage(staging, thrown);
    throw thrown;
  }
}

function source(folder: TemporaryFolder, name = "source") {
  const root = folder.path(name);
  writeCheckpoint(root, { shards: 2, bytes: 9 * MiB });
  return { root, manifest: sealed(root).manifest };
}

test("takesBack() data for a revocation only, code for every refusal", () => {
  const receipt = (name: string) =>
    ({ files: [{ path: name }] }) as unknown as Parameters<typeof takesBack>[1];
  const refusal = (code: Code) => ({ state: "refused", code, reason: "" }) as const;
  assert.equal(takesBack(null, receipt("own.py")), false);
  assert.equal(takesBack(refusal("statement_expired"), receipt("a.safetensors")), false);
  assert.equal(takesBack(refusal("statement_expired"), receipt("sub/own.py")), true);
  assert.equal(takesBack(refusal("artifact_revoked"), receipt("a.safetensors")), true);
  assert.equal(takesBack(refusal("signer_revoked"), receipt("a.safetensors")), true);
});

describe("claimCheckpoint()", () => {
  test("installs the whole, and neither a second look nor a seal reads a byte of it again", async () => {
    using folder = temporaryFolder();
    const from = source(folder);
    const claimed = await claim(folder);
    await install(claimed, from);
    assert.deepEqual(await claimed.missing(from.manifest, signal), []);
    claimed[Symbol.dispose]();
    using later = await claim(folder, claimed.pool);
    assert.deepEqual(await later.missing(from.manifest, signal), []);
    assert.equal(claimed.pool.bytes, 0);

    const told: number[] = [];
    const inner = {
      seal: async (
        cache: Parameters<CheckpointSealer["seal"]>[0],
        settings: { known?: readonly unknown[] },
      ) => {
        told.push(settings.known?.length ?? 0);
        return sealed(cache.root);
      },
      [Symbol.asyncDispose]: async () => {},
    };
    const sealer = new CheckpointSealer(inner, optionsFor(folder, claimed.pool));
    const cache = { family: familyOf(claimed.root), root: claimed.root, excluded: [] };
    const settings = { settledBeforeMs: Date.now() + 60_000 };
    const first = await sealer.seal(cache, settings, signal);
    assert.equal(first?.manifest.artifactId, from.manifest.artifactId);
    await sealer.seal(cache, settings, signal);
    assert.deepEqual(
      told,
      [from.manifest.files.length],
      "what has not changed is not sealed again",
    );
    fs.writeFileSync(path.join(claimed.root, "more.json"), "{}");
    const more = await sealer.seal(cache, settings, signal);
    assert.equal(more?.files.length, from.manifest.files.length + 1);
    assert.deepEqual(told, [from.manifest.files.length, 0], "the sealing thread is told once");
    assert.equal(claimed.pool.bytes, 0);
  });

  test("believes no file that is there before it has read it, and takes one that is right", async () => {
    using folder = temporaryFolder();
    const from = source(folder);
    using claimed = await claim(folder);
    const name = shardName(0, 2);
    fs.copyFileSync(path.join(from.root, name), path.join(claimed.root, name));
    const size = fs.statSync(path.join(claimed.root, name)).size;
    await install(claimed, from);
    assert.equal(claimed.pool.bytes, size);
    assert.equal(
      readDigestRecord(folder.path("state"), claimed.root).size,
      from.manifest.files.length,
    );
  });

  test("refuses a file of the target's own with other bytes or another size", async () => {
    using folder = temporaryFolder();
    const from = source(folder);
    using claimed = await claim(folder);
    const own = path.join(claimed.root, shardName(1, 2));
    fs.writeFileSync(own, "own");
    const obstructed = { code: "target_obstructed" };
    await assert.rejects(claimed.missing(from.manifest, signal), obstructed);
    fs.copyFileSync(path.join(from.root, shardName(0, 2)), own);
    await assert.rejects(claimed.missing(from.manifest, signal), obstructed);
    fs.rmSync(own);
    fs.mkdirSync(own);
    await assert.rejects(claimed.missing(from.manifest, signal), obstructed);
  });

  test("installs nothing of a checkpoint with a broken file or one that its index lacks, and drops it", async () => {
    using folder = temporaryFolder();
    const from = source(folder);
    using claimed = await claim(folder);
    const broken = (tree: string) => fs.writeFileSync(path.join(tree, shardName(0, 2)), "torn");
    await assert.rejects(install(claimed, from, broken), { code: "structure_invalid" });
    const files = from.manifest.files.filter((file) => file.path !== shardName(0, 2));
    const lacking = { root: from.root, manifest: { ...from.manifest, files } };
    await assert.rejects(install(claimed, lacking), { code: "structure_invalid" });
    assert.deepEqual(fs.readdirSync(claimed.root), [".relight"]);
    assert.deepEqual(fs.readdirSync(path.join(claimed.root, ".relight/staging")), []);
  });

  test("keeps what an attempt left, believes only pieces with the right bytes, and drops other attempts", async () => {
    using folder = temporaryFolder();
    const { root, manifest } = source(folder);
    const first = await claim(folder);
    const files = await first.missing(manifest, signal);
    const staging = await first.stage(manifest, files, signal);
    const name = shardName(0, 2);
    const bytes = fs.readFileSync(path.join(root, name));
    bytes[chunkBytes + 1] = (bytes[chunkBytes + 1] ?? 0) ^ 1;
    fs.writeFileSync(path.join(staging.tree, name), bytes);
    fs.writeFileSync(path.join(staging.tree, shardName(1, 2)), bytes.subarray(0, 100));
    first.unstage(staging, new RelightError("sources_exhausted", "gone"));
    fs.mkdirSync(path.join(staging.tree, "../0123456789abcdef"));
    first[Symbol.dispose]();

    using second = await claim(folder);
    const resumed = await second.stage(manifest, files, signal);
    const at = manifest.files.findIndex((file) => file.path === name);
    const kept = listPieces(manifest).flatMap(({ fileIndex, offset }, piece) =>
      resumed.verified.has(piece) ? [[fileIndex, offset]] : [],
    );
    assert.deepEqual(kept, [
      [at, 0],
      [at, 2 * chunkBytes],
    ]);
    assert.deepEqual(fs.readdirSync(path.dirname(resumed.tree)), [path.basename(resumed.tree)]);
  });
});
