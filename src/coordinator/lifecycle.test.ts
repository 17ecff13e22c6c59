// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { sourceHead } from "../../test/support/source-head.ts";
import type { SourceHead } from "../store/store.ts";
import { type Ages, due, hear, lifecycleDefaults, type Word } from "./lifecycle.ts";

const limits = lifecycleDefaults;

function agesAt(ms: number): Ages {
  return { heardMs: ms, writtenMs: ms };
}

function after(head: SourceHead, word: Word, now = 2_000): SourceHead {
  const verdict = hear(head, word, now);
  return verdict.type === "write" ? verdict.head : head;
}

test("hear() lets a worker move between INITIALIZING and READY, and remembers when", () => {
  const initializing = after(sourceHead(), { type: "status", status: "initializing" }, 2_000);
  assert.equal(initializing.status, "initializing");
  const ready = after(initializing, { type: "status", status: "ready" }, 3_000);
  assert.deepEqual([ready.status, ready.updatedAtMs, ready.staleBy], ["ready", 3_000, null]);
});

test("hear() refuses READY after the worker's own STALE", () => {
  const gone = after(sourceHead(), { type: "status", status: "stale" });
  assert.equal(hear(gone, { type: "status", status: "ready" }, 3_000).type, "refuse");
  assert.equal(hear(gone, { type: "status", status: "initializing" }, 3_000).type, "refuse");
});

test("hear() lets READY revive a record that went stale by silence", () => {
  for (const staleBy of ["timeout", "session"] as const) {
    const quiet = sourceHead({ status: "stale", staleBy });
    const revived = after(quiet, { type: "status", status: "ready" });
    assert.deepEqual([revived.status, revived.staleBy], ["ready", null]);
  }
});

test("hear() ends stale for every order in which STALE and others arrive", () => {
  const word = fc.oneof(
    fc.record({
      type: fc.constant("status" as const),
      status: fc.constantFrom("initializing" as const, "ready" as const),
    }),
    fc.constant({ type: "session_lost" } as const),
  );
  const last = fc.constantFrom<Word>({ type: "status", status: "stale" }, { type: "withdrawn" });
  fc.assert(
    fc.property(fc.array(word), last, fc.array(word), (before, stale, late) => {
      const end = [...before, stale, ...late].reduce(
        (head, each) => after(head, each),
        sourceHead(),
      );
      assert.deepEqual([end.status, end.staleBy], ["stale", "request"]);
    }),
  );
});

test("due() waits for an active record until 90 s of silence are over", () => {
  const head = sourceHead({ updatedAtMs: 0 });
  assert.deepEqual(due(head, agesAt(0), 90_000, limits), { type: "wait", untilMs: 90_000 });
  const next = due(head, agesAt(0), 90_001, limits);
  assert.equal(next.type === "write" && next.head.staleBy, "timeout");
  assert.deepEqual(due(head, agesAt(50_000), 90_001, limits), { type: "wait", untilMs: 140_000 });
});

test("due() removes a stale record an hour after its last change", () => {
  const head = sourceHead({ status: "stale", staleBy: "timeout", updatedAtMs: 1_000 });
  assert.equal(due(head, agesAt(1_000), 3_601_000, limits).type, "wait");
  assert.equal(due(head, agesAt(1_000), 3_601_001, limits).type, "remove");
});
