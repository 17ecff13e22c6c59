// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { assertConsistent, playPull } from "../../test/support/pull-world.ts";
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
});
