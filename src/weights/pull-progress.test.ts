// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type PullEvent,
  type PullProgress,
  type PullStep,
  startPull,
  step,
} from "./pull-progress.ts";

const failure = { source: "a", code: "source_gone", message: "gone" } as const;
const offered = (content: string): PullEvent => ({ type: "offered", source: "a", content });
const verified = (...tensors: number[]): PullEvent => ({ type: "verified", tensors });
const copied: PullEvent = { type: "copied", failure: null };

function walk(start: PullProgress, ...events: PullEvent[]): [PullProgress, PullStep[]] {
  const steps: PullStep[] = [];
  let progress = start;
  for (const event of events) {
    const [next, then] = step(progress, event);
    progress = next;
    steps.push(then);
  }
  return [progress, steps];
}

test("what verified from one source is kept when another of the same content follows", () => {
  const [progress, steps] = walk(
    startPull(3, null),
    offered("x"),
    verified(0, 1),
    copied,
    offered("x"),
    verified(2),
  );
  assert.deepEqual(steps, ["copy", "copy", "next", "copy", "done"]);
  assert.equal(progress.verified.size, 3);
});

test("another content starts from nothing, so that no pull ends with two", () => {
  const [progress, steps] = walk(
    startPull(2, null),
    offered("x"),
    verified(0),
    copied,
    offered("y"),
    verified(1),
    copied,
  );
  assert.deepEqual(steps, ["copy", "copy", "next", "copy", "copy", "next"]);
  assert.deepEqual([...progress.verified], [1]);
});

test("a demanded content is never replaced", () => {
  const [progress, steps] = walk(startPull(2, "x"), offered("y"));
  assert.deepEqual(steps, ["next"]);
  assert.equal(progress.content, "x");
  assert.equal(progress.failures[0]?.code, "digest_mismatch");
});

test("a source that keeps changing is left after three times, and the next one may change again", () => {
  const changed: PullEvent = { type: "generation_changed", failure };
  const [progress, steps] = walk(startPull(1, null), changed, changed, changed, changed, changed);
  assert.deepEqual(steps, ["again", "again", "again", "next", "again"]);
  assert.equal(progress.failures.length, 1);
});

test("wrong tensors are a failure of their source, and the rest counts", () => {
  const wrong: PullEvent = { type: "copied", failure };
  const [progress, steps] = walk(startPull(2, null), offered("x"), verified(0), wrong);
  assert.deepEqual(steps, ["copy", "copy", "next"]);
  assert.deepEqual([...progress.verified], [0]);
  assert.deepEqual(progress.failures, [failure]);
});
