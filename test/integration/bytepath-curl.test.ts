// SPDX-License-Identifier: Apache-2.0
// The byte path read with curl: what a person, a proxy or a script sees of it.

import assert from "node:assert/strict";
import { execFile, spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { promisify } from "node:util";
import { PieceSet } from "../../src/core/pieces.ts";
import { MiB } from "../../src/core/units.ts";
import { frameBytes, readFrame } from "../../src/transport/http-frame.ts";
import { startHttpServer } from "../../src/transport/http-server.ts";
import type { Offer } from "../../src/transport/transport.ts";
import { makeTree, offerOf, type Tree } from "../support/tree.ts";

const hasCurl = spawnSync("curl", ["--version"]).status === 0;
const run = promisify(execFile);

describe("curl", { skip: hasCurl ? false : "curl is not installed" }, () => {
  test("reads health and manifest", async () => {
    await withServer({ a: 10 }, async ({ tree, curl }) => {
      assert.equal((await curl("/healthz")).toString(), "ok\n");
      assert.deepEqual(
        await curl(`/v1/artifacts/${tree.manifest.artifactId}/manifest`),
        tree.manifest.bytes,
      );
    });
  });

  test("reads a file whole, a range of it, and its head", async () => {
    await withServer({ a: 10, large: 9 * MiB }, async ({ tree, curl }) => {
      const large = `/v1/artifacts/${tree.manifest.artifactId}/files/1`;
      const bytes = fs.readFileSync(path.join(tree.root, "large"));
      assert.deepEqual(await curl(large), bytes);
      assert.deepEqual(
        await curl(large, "--range", "4194300-4194399"),
        bytes.subarray(4_194_300, 4_194_400),
      );
      assert.match((await curl(large, "--head")).toString(), /Content-Length: 9437184\r\n/);
    });
  });

  test("reads several pieces in one response of exact length, each behind its frame", async () => {
    await withServer({ a: 10, b: 0, c: 20 }, async ({ tree, curl }) => {
      const bytes = await curl(`/v1/artifacts/${tree.manifest.artifactId}/pieces?ranges=0-1,2`);
      assert.equal(bytes.length, 3 * frameBytes + 30);
      assert.deepEqual(readFrame(bytes, 0), { piece: 0, length: 10, isRefused: false });
      assert.deepEqual(readFrame(bytes, 18), { piece: 1, length: 0, isRefused: false });
      assert.deepEqual(bytes.subarray(34), fs.readFileSync(path.join(tree.root, "c")));
    });
  });

  test("sees as bits which pieces a partial source has", async () => {
    const have = new PieceSet(3);
    have.add(2);
    await withServer(
      { a: 1, b: 1, c: 1 },
      async ({ tree, curl }) => {
        const bytes = await curl(`/v1/artifacts/${tree.manifest.artifactId}/have`);
        assert.deepEqual([...bytes], [0b100]);
      },
      have,
    );
  });

  test("gets 410 for a file that has changed or has not arrived", async () => {
    const have = new PieceSet(2);
    have.add(0);
    await withServer(
      { a: 10, b: 10 },
      async ({ tree, status }) => {
        fs.writeFileSync(path.join(tree.root, "a"), "changed as");
        assert.equal(await status(`/v1/artifacts/${tree.manifest.artifactId}/files/0`), "410");
        assert.equal(await status(`/v1/artifacts/${tree.manifest.artifactId}/files/1`), "410");
      },
      have,
    );
  });
});

interface Context {
  readonly tree: Tree;
  /** The body, headers included where curl prints them. */
  curl(path: string, ...words: readonly string[]): Promise<Buffer>;
  status(path: string): Promise<string>;
}

async function withServer(
  sizes: Readonly<Record<string, number>>,
  body: (context: Context) => Promise<void>,
  have?: Offer["have"],
): Promise<void> {
  using tree = makeTree(sizes);
  const events = { fileChanged: () => {} };
  await using server = await startHttpServer({ host: "127.0.0.1", port: 0, threads: 1, events });
  await server.offer(offerOf(tree, have));
  const ask = async (target: string, words: readonly string[]) => {
    const all = ["--silent", "--max-time", "20", ...words, `${server.endpoint}${target}`];
    const { stdout } = await run("curl", all, { encoding: "buffer", maxBuffer: 32 * MiB });
    return stdout;
  };
  await body({
    tree,
    curl: (target, ...words) => ask(target, ["--fail", ...words]),
    status: async (target) =>
      (await ask(target, ["--output", "/dev/null", "--write-out", "%{http_code}"])).toString(),
  });
}
