// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { assertConsistent, playPull } from "../../test/support/pull-world.ts";
import { PieceSet } from "../core/pieces.ts";
import { KiB, MiB } from "../core/units.ts";
import { step } from "./pull.ts";
import { createPull, pullSettings } from "./pull-state.ts";

describe("pull plan", () => {
  // Simulation seed 1, 20 replicas: every source left the last piece to the others, until the pull starved.
  test("the last piece is asked for though each source is slower than all others together", () => {
    const pull = createPull({
      pieces: Array.from({ length: 13 }, () => ({ length: MiB })),
      settings: { ...pullSettings, lanesMax: 4, lanesPerSourceMax: 1, batchPiecesMax: 1 },
      random: () => 0.5,
      nowMs: 0,
    });
    for (const endpoint of ["a", "b", "c", "d"]) {
      step(pull, { type: "source_found", endpoint, isComplete: true }, 0);
    }
    let nowMs = 0;
    while (pull.piecesLeft > 0) {
      assert.ok(pull.batches.size > 0, `${pull.piecesLeft} pieces are left and nobody is asked`);
      nowMs += 10;
      for (const { id, pieces } of [...pull.batches.values()]) {
        step(pull, { type: "pieces_verified", batch: id, pieces: [...pieces] }, nowMs);
        step(pull, { type: "batch_done", batch: id, refused: [] }, nowMs);
      }
      // A batch that comes back leaves one piece among three idle sources, equally fast.
      const [last] = pull.batches.values();
      if (pull.piecesLeft !== 1 || last === undefined || nowMs > 100) continue;
      const failure = { code: "source_stalled", message: "", retryAfterMs: null } as const;
      step(pull, { type: "batch_failed", batch: last.id, failure }, 200);
      nowMs = 200;
    }
    assert.deepEqual(pull.outcome, { type: "complete" });
  });

  // Simulation seed 37, 20 replicas: a pull took its last two pieces from one source after the other.
  test("no batch is taken away from a source for a piece that takes long on every link", () => {
    const slow = { bytesPerMs: 5 * KiB };
    const result = playPull({
      lengths: Array.from({ length: 16 }, () => 4 * MiB),
      sources: { a: slow, b: slow, c: slow, d: slow, e: slow },
    });
    assertConsistent(result);
    assert.deepEqual(result.outcome, { type: "complete" });
    const stolen = [...result.pull.sources.values()].map((source) => source.stolen);
    assert.deepEqual(stolen, [0, 0, 0, 0, 0]);
  });

  test("an order's first group is asked for whole before the second, and both before the rest", () => {
    const pull = createPull({
      pieces: Array.from({ length: 40 }, () => ({ length: MiB })),
      order: [
        [30, 31, 5],
        [7, 8, 9, 10],
      ],
      settings: { ...pullSettings, lanesMax: 1, batchPiecesMax: 2 },
      random: () => 0.9,
      nowMs: 0,
    });
    const asked: number[] = [];
    let effects = step(pull, { type: "source_found", endpoint: "a", isComplete: true }, 0);
    while (pull.outcome === null && asked.length < 40) {
      const fetch = effects.find((effect) => effect.type === "fetch");
      assert.ok(fetch, "one batch is under way");
      asked.push(...fetch.pieces);
      const { batch, pieces } = fetch;
      step(pull, { type: "pieces_verified", batch, pieces }, 1);
      effects = step(pull, { type: "batch_done", batch, refused: [] }, 1);
      if (asked.length === 10) step(pull, { type: "reordered", order: [[0, 1]] }, 1);
    }
    assert.deepEqual(pull.outcome, { type: "complete" });
    assert.deepEqual(new Set(asked.slice(0, 3)), new Set([5, 30, 31]));
    assert.deepEqual(new Set(asked.slice(3, 7)), new Set([7, 8, 9, 10]));
    // Two more were under way when the new order came.
    assert.deepEqual(new Set(asked.slice(11, 13)), new Set([0, 1]));
  });

  test("a source that lacks the first group is asked for what it has", () => {
    const pull = createPull({
      pieces: Array.from({ length: 4 }, () => ({ length: MiB })),
      order: [[0, 1]],
      settings: pullSettings,
      random: () => 0,
      nowMs: 0,
    });
    step(pull, { type: "source_found", endpoint: "part", isComplete: false }, 0);
    const have = new PieceSet(4);
    have.add(3);
    const effects = step(pull, { type: "have_known", endpoint: "part", have }, 0);
    assert.deepEqual(
      effects.flatMap((effect) => (effect.type === "fetch" ? [effect.pieces] : [])),
      [[3]],
    );
  });
});
