// SPDX-License-Identifier: Apache-2.0
// Pulls over real sockets: one source, several, partial ones, busy ones, and sources that fail.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { RunningPull } from "../../src/artifacts/pull-run.ts";
import { PieceSet } from "../../src/core/pieces.ts";
import { KiB, MiB } from "../../src/core/units.ts";
import { startHttpFetcher } from "../../src/transport/http-fetcher.ts";
import { startHttpServer } from "../../src/transport/http-server.ts";
import type { PieceServer, ServerLimits } from "../../src/transport/transport.ts";
import { withCode } from "../contracts/transport.ts";
import { pullWith } from "../support/pull.ts";
import { differences, makeFolder, makeTree, offerOf, stagingFor } from "../support/tree.ts";

const manySizes = Object.fromEntries(
  Array.from({ length: 300 }, (_, number) => [
    `f${number % 7}/k${number}`,
    (number * 997) % (64 * KiB),
  ]),
);
const sizes = { ...manySizes, "large.bin": 21 * MiB + 3 };

function serve(limits: Partial<ServerLimits> = {}): Promise<PieceServer> {
  return startHttpServer({
    host: "127.0.0.1",
    port: 0,
    threads: 1,
    limits,
    events: { fileChanged: () => {} },
  });
}

/** Every piece that was verified came once: the sources' sums are the artifact's. */
async function assertExact(pull: RunningPull, wanted: { pieces: number; bytes: number }) {
  const report = await pull.done;
  assert.equal(report.pieces, wanted.pieces);
  assert.equal(report.bytes, wanted.bytes);
}

describe("pull over HTTP", () => {
  test("startPull() brings everything from one source", async () => {
    using tree = makeTree(sizes);
    using folder = makeFolder();
    await using server = await serve();
    await using fetcher = startHttpFetcher();
    const offer = offerOf(tree);
    await server.offer(offer);
    const staging = stagingFor(tree, folder.path);
    const { artifactId } = offer;
    const sources = [{ endpoint: server.endpoint, isComplete: true }];
    const pull = pullWith({ fetcher, artifactId, sources, staging });
    await assertExact(pull, { pieces: offer.pieces.length, bytes: totalOf(sizes) });
    assert.deepEqual(differences(tree, folder.path), []);
  });

  test("startPull() takes different pieces from two sources that have half each", async () => {
    using tree = makeTree(sizes);
    using folder = makeFolder();
    await using first = await serve();
    await using second = await serve();
    await using fetcher = startHttpFetcher();
    const offer = offerOf(tree);
    await first.offer({ ...offer, have: every(offer.pieces.length, (piece) => piece % 2 === 0) });
    await second.offer({ ...offer, have: every(offer.pieces.length, (piece) => piece % 2 === 1) });
    const staging = stagingFor(tree, folder.path);
    const sources = [first, second].map(({ endpoint }) => ({ endpoint, isComplete: false }));
    const pull = pullWith({ fetcher, artifactId: offer.artifactId, sources, staging });
    await assertExact(pull, { pieces: offer.pieces.length, bytes: totalOf(sizes) });
    assert.deepEqual(differences(tree, folder.path), []);
    for (const { pieces } of pull.report().sources) {
      assert.ok(pieces >= Math.floor(offer.pieces.length / 2), `${pieces} pieces`);
    }
  });

  test("startPull() ends with sources_exhausted when nobody can be reached", async () => {
    using tree = makeTree({ kernel: 100 });
    using folder = makeFolder();
    await using fetcher = startHttpFetcher();
    const gone = await serve();
    await gone[Symbol.asyncDispose]();
    const staging = stagingFor(tree, folder.path);
    const sources = [{ endpoint: gone.endpoint, isComplete: true }];
    const { artifactId } = tree.manifest;
    const settings = { backoffMsMin: 1, backoffMsMax: 2 };
    const pull = pullWith({ fetcher, artifactId, sources, staging, settings });
    await assert.rejects(pull.done, withCode("sources_exhausted"));
    assert.deepEqual(pull.report().sources[0]?.failures, { source_unreachable: 3 });
  });
});

function every(size: number, isIn: (piece: number) => boolean): PieceSet {
  const set = new PieceSet(size);
  for (let piece = 0; piece < size; piece++) if (isIn(piece)) set.add(piece);
  return set;
}

function totalOf(record: Readonly<Record<string, number>>): number {
  return Object.values(record).reduce((sum, size) => sum + size, 0);
}
