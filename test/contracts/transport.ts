// SPDX-License-Identifier: Apache-2.0
// The contract of src/transport/transport.ts, which every transport passes.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import type { Hex32 } from "../../src/core/digest.ts";
import { PieceSet } from "../../src/core/pieces.ts";
import { KiB, MiB } from "../../src/core/units.ts";
import { type Code, RelightError } from "../../src/errors.ts";
import type { PieceFetcher, PieceServer, ServerEvents } from "../../src/transport/transport.ts";
import {
  differences,
  makeFolder,
  makeTree,
  offerOf,
  relayOf,
  stagingFor,
} from "../support/tree.ts";

export interface Transport {
  serve(options: { events: ServerEvents; readersMax?: number }): Promise<PieceServer>;
  fetcher(): PieceFetcher;
}

const sizes = {
  "a/empty": 0,
  "a/one": 1,
  "b/c/some.cubin": 150 * KiB,
  "b/exactly-one-chunk": 4 * MiB,
  "large.bin": 9 * MiB + 17,
};
const noEvents: ServerEvents = { fileChanged: () => {} };
const within = () => AbortSignal.timeout(20_000);

export function transportContract(name: string, transport: Transport): void {
  describe(`transport contract: ${name}`, () => {
    test("pieces() writes every byte and mode of what is offered", async () => {
      using tree = makeTree(sizes);
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      const into = stagingFor(tree, folder.path);
      const verified: number[] = [];
      const receipt = await fetcher.pieces(
        { ...addressOf(server, tree), pieces: numbers(into.pieces.length), into },
        (some) => verified.push(...some),
        within(),
      );
      assert.deepEqual(differences(tree, folder.path), []);
      assert.deepEqual(verified, numbers(into.pieces.length));
      assert.equal(into.have.count(), into.pieces.length);
      assert.deepEqual(receipt, { bytes: sumOf(sizes), refused: [] });
    });

    test("pieces() brings only the pieces of its order", async () => {
      using tree = makeTree(sizes);
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      const into = stagingFor(tree, folder.path);
      await fetcher.pieces(
        { ...addressOf(server, tree), pieces: [1, 2], into },
        () => {},
        within(),
      );
      assert.deepEqual(piecesOf(into.have), [1, 2]);
      assert.deepEqual(fs.readdirSync(folder.path).sort(), ["a", "b"]);
    });

    test("manifest() and have() give what the source offers", async () => {
      using tree = makeTree(sizes);
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      const have = new PieceSet(offerOf(tree).pieces.length);
      have.add(2);
      await server.offer(offerOf(tree, have));
      const at = addressOf(server, tree);
      const manifest = await fetcher.manifest(at, { bytesMax: MiB }, within());
      assert.deepEqual(manifest, tree.manifest.bytes);
      assert.deepEqual(piecesOf(await fetcher.have(at, have.size, within())), [2]);
      have.add(0);
      assert.deepEqual(piecesOf(await fetcher.have(at, have.size, within())), [0, 2]);
    });

    test("statement() gives the very bytes that were offered, and source_gone where nobody signed", async () => {
      using tree = makeTree({ kernel: 100 });
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      const at = addressOf(server, tree);
      const statement = Buffer.from('{"payload": "with its own  spelling"}');
      await server.offer({ ...offerOf(tree), statement });
      assert.deepEqual(await fetcher.statement(at, { bytesMax: MiB }, within()), statement);
      await assert.rejects(
        fetcher.statement(at, { bytesMax: statement.length - 1 }, within()),
        withCode("source_protocol"),
      );
      await server.offer(offerOf(tree));
      await assert.rejects(
        fetcher.statement(at, { bytesMax: MiB }, within()),
        withCode("source_gone"),
      );
    });

    test("a file served from memory is not read from disk", async () => {
      using tree = makeTree({ "__grp__kernel.json": 100 });
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      const bytes = fs.readFileSync(path.join(tree.root, "__grp__kernel.json"));
      fs.rmSync(path.join(tree.root, "__grp__kernel.json"));
      const offer = offerOf(tree);
      await server.offer({ ...offer, files: offer.files.map((file) => ({ ...file, bytes })) });
      const into = stagingFor(tree, folder.path);
      await fetcher.pieces({ ...addressOf(server, tree), pieces: [0], into }, () => {}, within());
      assert.deepEqual(fs.readFileSync(path.join(folder.path, "__grp__kernel.json")), bytes);
    });

    test("pieces() names what the source does not have and brings the rest", async () => {
      using tree = makeTree(sizes);
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      const have = new PieceSet(offerOf(tree).pieces.length);
      have.add(1);
      await server.offer(offerOf(tree, have));
      const into = stagingFor(tree, folder.path);
      const order = { ...addressOf(server, tree), pieces: [0, 1, 4], into };
      const receipt = await fetcher.pieces(order, () => {}, within());
      assert.deepEqual(receipt, { bytes: 1, refused: [0, 4] });
      assert.deepEqual(piecesOf(into.have), [1]);
    });

    test("a file that changed after the seal is refused, reported once, and never served", async () => {
      using tree = makeTree(sizes);
      using folder = makeFolder();
      const changed: [Hex32, number][] = [];
      await using server = await transport.serve({
        events: { fileChanged: (artifactId, fileIndex) => changed.push([artifactId, fileIndex]) },
      });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      fs.writeFileSync(path.join(tree.root, "large.bin"), Buffer.alloc(sizes["large.bin"]));
      const into = stagingFor(tree, folder.path);
      const order = { ...addressOf(server, tree), pieces: numbers(into.pieces.length), into };
      const receipt = await fetcher.pieces(order, () => {}, within());
      assert.deepEqual(receipt.refused, [4, 5, 6]);
      assert.equal(fs.existsSync(path.join(folder.path, "large.bin")), false);
      assert.deepEqual(changed, [[tree.manifest.artifactId, 4]]);
      const have = await fetcher.have(addressOf(server, tree), into.pieces.length, within());
      assert.deepEqual(piecesOf(have), [0, 1, 2, 3]);
    });

    test("a link in a file's place is refused, not followed", async () => {
      using tree = makeTree({ kernel: 100, other: 100 });
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      const offer = offerOf(tree);
      fs.renameSync(path.join(tree.root, "kernel"), path.join(tree.root, "moved"));
      fs.symlinkSync("moved", path.join(tree.root, "kernel"));
      await server.offer(offer);
      const into = stagingFor(tree, folder.path);
      const order = { ...addressOf(server, tree), pieces: [0, 1], into };
      assert.deepEqual((await fetcher.pieces(order, () => {}, within())).refused, [0]);
    });

    test("bytes that are not the promised ones end in digest_mismatch and are not written", async () => {
      using tree = makeTree({ kernel: 100 });
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      const offer = offerOf(tree);
      await server.offer({
        ...offer,
        files: offer.files.map((file) => ({ ...file, bytes: Buffer.alloc(100) })),
      });
      const into = stagingFor(tree, folder.path);
      const order = { ...addressOf(server, tree), pieces: [0], into };
      await assert.rejects(
        fetcher.pieces(order, () => {}, within()),
        withCode("digest_mismatch"),
      );
      assert.deepEqual(fs.readdirSync(folder.path), []);
      assert.equal(into.have.count(), 0);
    });

    test("a target serves on what it has, and after relocate() from the final place", async () => {
      using tree = makeTree(sizes);
      using first = makeFolder();
      using second = makeFolder();
      await using origin = await transport.serve({ events: noEvents });
      await using relay = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await origin.offer(offerOf(tree));
      const staging = stagingFor(tree, first.path);
      await relay.offer(relayOf(tree, staging));
      const half = [0, 1, 2, 3];
      const order = { ...addressOf(origin, tree), pieces: half, into: staging };
      await fetcher.pieces(order, () => {}, within());
      const into = stagingFor(tree, second.path);
      const relayed = { ...addressOf(relay, tree), pieces: [2, 3, 4], into };
      assert.deepEqual((await fetcher.pieces(relayed, () => {}, within())).refused, [4]);

      fs.rmSync(first.path, { recursive: true });
      await relay.relocate(tree.manifest.artifactId, tree.files);
      await fetcher.pieces({ ...relayed, pieces: [0, 1] }, () => {}, within());
      assert.deepEqual(piecesOf(into.have), [0, 1, 2, 3]);
    });

    test("withdraw() makes the source answer that it is gone", async () => {
      using tree = makeTree({ kernel: 100 });
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      await server.withdraw(tree.manifest.artifactId);
      const at = addressOf(server, tree);
      const into = stagingFor(tree, folder.path);
      const gone = withCode("source_gone");
      await assert.rejects(fetcher.manifest(at, { bytesMax: MiB }, within()), gone);
      await assert.rejects(
        fetcher.pieces({ ...at, pieces: [0], into }, () => {}, within()),
        gone,
      );
    });

    test("a source that admits no reader answers source_busy with a time to wait", async () => {
      using tree = makeTree({ kernel: 100 });
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents, readersMax: 0 });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      const into = stagingFor(tree, folder.path);
      const order = { ...addressOf(server, tree), pieces: [0], into };
      await assert.rejects(
        fetcher.pieces(order, () => {}, within()),
        (error: unknown) => {
          assert.ok(error instanceof RelightError);
          assert.equal(error.code, "source_busy");
          assert.equal(error.details["retryAfterMs"], 1_000);
          return true;
        },
      );
      assert.equal(server.stats().refused, 1);
    });

    test("a manifest beyond the target's limit is refused", async () => {
      using tree = makeTree({ kernel: 100 });
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      await assert.rejects(
        fetcher.manifest(addressOf(server, tree), { bytesMax: 10 }, within()),
        withCode("source_protocol"),
      );
    });

    test("a source that was stopped is unreachable", async () => {
      using tree = makeTree({ kernel: 100 });
      await using fetcher = transport.fetcher();
      const server = await transport.serve({ events: noEvents });
      await server[Symbol.asyncDispose]();
      await assert.rejects(
        fetcher.manifest(addressOf(server, tree), { bytesMax: MiB }, within()),
        withCode("source_unreachable"),
      );
    });

    test("an aborted signal ends a call with its reason", async () => {
      using tree = makeTree({ kernel: 100 });
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      const reason = new RelightError("deadline_exceeded", "Cannot go on: the budget is used up");
      await assert.rejects(
        fetcher.manifest(addressOf(server, tree), { bytesMax: MiB }, AbortSignal.abort(reason)),
        withCode("deadline_exceeded"),
      );
    });

    test("a disk that refuses ends a call with the disk's code", async () => {
      using tree = makeTree({ "folder/kernel": 100 });
      using folder = makeFolder();
      await using server = await transport.serve({ events: noEvents });
      await using fetcher = transport.fetcher();
      await server.offer(offerOf(tree));
      fs.writeFileSync(path.join(folder.path, "folder"), "a file in a folder's place");
      const into = stagingFor(tree, folder.path);
      const order = { ...addressOf(server, tree), pieces: [0], into };
      await assert.rejects(
        fetcher.pieces(order, () => {}, within()),
        withCode("target_obstructed"),
      );
      assert.equal(into.have.count(), 0);
    });
  });
}

export function withCode(code: Code): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof RelightError, String(error));
    assert.equal(error.code, code, error.message);
    return true;
  };
}

export function numbers(count: number): number[] {
  return Array.from({ length: count }, (_, number) => number);
}

function piecesOf(set: PieceSet): number[] {
  return numbers(set.size).filter((piece) => set.has(piece));
}

function addressOf(server: PieceServer, tree: { manifest: { artifactId: Hex32 } }) {
  return { endpoint: server.endpoint, artifactId: tree.manifest.artifactId };
}

function sumOf(record: Readonly<Record<string, number>>): number {
  return Object.values(record).reduce((sum, size) => sum + size, 0);
}
