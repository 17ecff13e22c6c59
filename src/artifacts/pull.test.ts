// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { assertConsistent, type Behaviour, playPull } from "../../test/support/pull-world.ts";
import { KiB, MiB } from "../core/units.ts";
import type { Code } from "../errors.ts";
import { reportOf } from "./pull.ts";

const hundred = Array.from({ length: 100 }, () => MiB);
/** 100 MiB in a second. */
const fast = 100 * KiB;

describe("pull", () => {
  test("an empty order is complete before anything is asked", () => {
    const { pull, requests } = playPull({ lengths: [], sources: { a: { bytesPerMs: fast } } });
    assert.deepEqual(pull.outcome, { type: "complete" });
    assert.equal(requests.size, 0);
  });

  test("one source brings every piece once", () => {
    const result = playPull({ lengths: hundred, sources: { a: { bytesPerMs: fast } } });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
  });

  test("two sources bring different pieces in about half the time", () => {
    const one = playPull({ lengths: hundred, sources: { a: { bytesPerMs: fast } } });
    const both = { a: { bytesPerMs: fast }, b: { bytesPerMs: fast } };
    const two = playPull({ lengths: hundred, sources: both });
    assertConsistent(two);
    assert.ok(two.elapsedMs < 0.6 * one.elapsedMs, `${two.elapsedMs} against ${one.elapsedMs}`);
  });

  test("a source fifty times slower than the other costs no more than a tenth of the time", () => {
    const alone = playPull({ lengths: hundred, sources: { a: { bytesPerMs: fast } } });
    const pair = { a: { bytesPerMs: fast }, b: { bytesPerMs: fast / 50 } };
    const withSlow = playPull({ lengths: hundred, sources: pair });
    assertConsistent(withSlow);
    assert.deepEqual(withSlow.outcome, { type: "complete" });
    const limit = alone.elapsedMs * 1.1 + 300;
    assert.ok(withSlow.elapsedMs < limit, `${withSlow.elapsedMs} against ${limit}`);
  });

  test("a batch that no longer moves is taken away and brought by the other source", () => {
    const stuck: Behaviour = { bytesPerMs: 1e-9 };
    const result = playPull({
      lengths: hundred,
      sources: { a: { bytesPerMs: fast }, stuck },
    });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
    const report = reportOf(result.pull).sources.find((source) => source.endpoint === "stuck");
    assert.ok((report?.stolen ?? 0) > 0);
    assert.ok(result.elapsedMs < 3_000, `${result.elapsedMs} ms`);
  });

  test("a source with one wrong digest is not asked again in this pull", () => {
    const wrong: Behaviour = {
      bytesPerMs: fast,
      failsAfter: { pieces: 3, code: "digest_mismatch" },
    };
    const result = playPull({ lengths: hundred, sources: { a: { bytesPerMs: fast }, wrong } });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
    const report = reportOf(result.pull).sources.find((source) => source.endpoint === "wrong");
    assert.equal(report?.dropped?.code, "digest_mismatch");
    const asked = result.askedMs.get("wrong") ?? [];
    // Two lanes were open when the digest was found wrong; no request came after.
    assert.ok(asked.length <= 2 && asked.every((atMs) => atMs === 0), `${asked}`);
  });

  test("a busy source is asked again only after the time it named", () => {
    const result = playPull({
      lengths: hundred,
      sources: { a: { bytesPerMs: fast, busyTimes: 3 } },
    });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
    const [first = 0, , third = 0] = result.askedMs.get("a") ?? [];
    assert.ok(third - first >= 1_000, `asked at ${result.askedMs.get("a")}`);
  });

  test("two sources with half each bring everything between them", () => {
    const result = playPull({
      lengths: hundred,
      sources: {
        even: { bytesPerMs: fast, has: (piece) => piece % 2 === 0 },
        odd: { bytesPerMs: fast, has: (piece) => piece % 2 === 1 },
      },
    });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
  });

  test("a source that still receives is asked again until it has the rest", () => {
    const result = playPull({
      lengths: hundred,
      sources: { relay: { bytesPerMs: fast, has: (piece) => piece < 10, completeMs: 3_000 } },
    });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
  });

  test("a full source is asked first for what no partial source has", () => {
    const result = playPull({
      lengths: hundred,
      sources: {
        full: { bytesPerMs: fast },
        partial: { bytesPerMs: fast, has: (piece) => piece < 40 },
      },
      foundMs: { full: 10 },
    });
    assertConsistent(result);
    const fromFull = (result.requests.get("full") ?? []).slice(0, 2).flat();
    assert.ok(fromFull.length > 0 && fromFull.every((piece) => piece >= 40), `${fromFull}`);
  });

  test("a source that appears later takes part", () => {
    const result = playPull({
      lengths: hundred,
      sources: { a: { bytesPerMs: fast }, late: { bytesPerMs: fast } },
      foundMs: { late: 200 },
    });
    assertConsistent(result);
    assert.ok(reportOf(result.pull).sources.every((source) => source.pieces > 0));
  });

  test("the last source's failure ends the pull with sources_exhausted, naming each", () => {
    const failsAfter = (code: Code) => ({ bytesPerMs: fast, failsAfter: { pieces: 5, code } });
    const result = playPull({
      lengths: hundred,
      sources: { a: failsAfter("source_gone"), b: failsAfter("source_protocol") },
    });
    assertConsistent(result);
    assert.ok(result.outcome?.type === "failed");
    assert.equal(result.outcome.code, "sources_exhausted");
    assert.match(result.outcome.message, /a \(source_gone\), b \(source_protocol\)/);
  });

  test("sources that lack what is missing end the pull once nothing new comes", () => {
    const result = playPull({
      lengths: hundred,
      sources: { a: { bytesPerMs: fast, has: (piece) => piece !== 7 } },
    });
    assertConsistent(result);
    assert.ok(result.outcome?.type === "failed");
    assert.equal(result.outcome.code, "sources_exhausted");
    assert.equal(reportOf(result.pull).piecesLeft, 1);
  });

  test("a full disk ends the pull at once with its own code", () => {
    const full: Behaviour = { bytesPerMs: fast, failsAfter: { pieces: 2, code: "disk_full" } };
    const result = playPull({ lengths: hundred, sources: { full, other: { bytesPerMs: fast } } });
    assertConsistent(result);
    assert.ok(result.outcome?.type === "failed");
    assert.equal(result.outcome.code, "disk_full");
  });

  test("one whole source among any others is enough, and no piece is verified twice", () => {
    fc.assert(
      fc.property(
        anyPieces,
        fc.array(anySource, { maxLength: 6 }),
        fc.nat(),
        (lengths, bad, seed) => {
          const sources = Object.fromEntries(bad.map((source, index) => [`s${index}`, source]));
          const result = playPull({
            lengths,
            sources: { ...sources, good: { bytesPerMs: fast } },
            seed,
          });
          assertConsistent(result);
          assert.deepEqual(result.outcome, { type: "complete" });
        },
      ),
      { numRuns: 300, seed: 20_261_121 },
    );
  });

  test("whatever the sources do, a pull ends, complete or with a code", () => {
    fc.assert(
      fc.property(
        anyPieces,
        fc.array(anySource, { minLength: 1, maxLength: 6 }),
        fc.nat(),
        (lengths, some, seed) => {
          const sources = Object.fromEntries(some.map((source, index) => [`s${index}`, source]));
          const result = playPull({ lengths, sources, seed });
          assertConsistent(result);
          const isDone = result.verified.every((times) => times === 1);
          assert.equal(result.outcome?.type, isDone ? "complete" : "failed");
        },
      ),
      { numRuns: 300, seed: 20_261_121 },
    );
  });
});

const anyPieces = fc.array(fc.oneof(fc.nat(200 * KiB), fc.constant(4 * MiB), fc.constant(0)), {
  minLength: 1,
  maxLength: 120,
});
const anyFailure = fc.record({
  pieces: fc.nat(40),
  code: fc.constantFrom<Code>(
    "source_unreachable",
    "source_stalled",
    "source_gone",
    "source_protocol",
    "digest_mismatch",
  ),
});
const anySource: fc.Arbitrary<Behaviour> = fc.record(
  {
    bytesPerMs: fc.constantFrom(fast, fast / 10, fast / 1_000, fast * 10),
    has: fc.integer({ min: 1, max: 5 }).map((every) => (piece: number) => piece % every === 0),
    completeMs: fc.nat(5_000),
    failsAfter: anyFailure,
    busyTimes: fc.nat(4),
  },
  { requiredKeys: ["bytesPerMs"] },
);
