// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { KiB } from "../core/units.ts";
import { step } from "./pull.ts";
import type { PullEffect, PullEvent } from "./pull-events.ts";
import { createPull, type Pull, pullSettings } from "./pull-state.ts";

const pieces = Array.from({ length: 100 }, () => ({ length: 64 * KiB }));

function pullThatSearches(): Pull {
  return createPull({
    pieces,
    settings: pullSettings,
    random: () => 0.5,
    nowMs: 0,
    canSearch: true,
  });
}

function foundSource(endpoint: string, isComplete = true): PullEvent {
  return { type: "source_found", endpoint, isComplete };
}

function fails(
  effects: readonly PullEffect[],
  code: "source_gone" | "digest_mismatch",
): PullEvent[] {
  return effects.flatMap((effect) =>
    effect.type === "fetch"
      ? [
          {
            type: "batch_failed",
            batch: effect.batch,
            failure: { code, message: "Cannot serve", retryAfterMs: null },
          } satisfies PullEvent,
        ]
      : [],
  );
}

function hasSearch(effects: readonly PullEffect[]): boolean {
  return effects.some(({ type }) => type === "search");
}

/** Plays ticks at the times that the pull asks for, and tells when it searched; each search finds nothing. */
function searchTimes(pull: Pull, untilMs: number): number[] {
  const times: number[] = [];
  for (let atMs = pull.wakeMs; atMs !== null && atMs <= untilMs; atMs = pull.wakeMs) {
    if (!hasSearch(step(pull, { type: "tick" }, atMs))) continue;
    times.push(atMs);
    step(pull, { type: "search_done", sources: [] }, atMs);
  }
  return times;
}

describe("pull search", () => {
  test("a pull with a free lane asks for more sources, more and more rarely", () => {
    const pull = pullThatSearches();
    step(pull, foundSource("a"), 0);
    const times = searchTimes(pull, 20_000);
    const gaps = times.slice(1).map((atMs, index) => atMs - (times[index] ?? 0));
    assert.ok(times.length >= 4 && times.length <= 10, `${times}`);
    assert.ok(
      gaps.every((gap, index) => gap >= (gaps[index - 1] ?? 0)),
      `${gaps}`,
    );
  });

  test("a pull whose lanes are all busy asks nobody", () => {
    const pull = pullThatSearches();
    step(pull, foundSource("a"), 0);
    step(pull, foundSource("b"), 0);
    assert.equal(pull.batches.size, pullSettings.lanesMax);
    assert.equal(hasSearch(step(pull, { type: "tick" }, 5_000)), false);
  });

  test("a source that a search finds is used at once", () => {
    const pull = pullThatSearches();
    step(pull, foundSource("a"), 0);
    assert.ok(hasSearch(step(pull, { type: "tick" }, 1_000)));
    const sources = [{ endpoint: "b", isComplete: true }];
    const effects = step(pull, { type: "search_done", sources }, 1_001);
    const asked = effects.flatMap((effect) => (effect.type === "fetch" ? effect.endpoint : []));
    assert.ok(asked.includes("b"), `${asked}`);
  });

  test("the last source's end asks once more before the pull gives up", () => {
    const pull = pullThatSearches();
    const begun = step(pull, foundSource("a"), 0);
    const after = fails(begun, "source_gone").flatMap((event) => step(pull, event, 10));
    assert.ok(hasSearch(after));
    assert.ok(!after.some(({ type }) => type === "finish"));
    const effects = step(pull, { type: "search_done", sources: [] }, 20);
    const finishes = effects.filter(({ type }) => type === "finish");
    assert.equal(finishes.length, 1);
  });

  test("a search that is not answered proves nothing: the pull asks again until it starves", () => {
    const pull = pullThatSearches();
    const begun = step(pull, foundSource("a"), 0);
    for (const event of fails(begun, "source_gone")) step(pull, event, 10);
    step(pull, { type: "search_failed" }, 20);
    let [searches, nowMs] = [1, 20];
    while (pull.outcome === null && pull.wakeMs !== null && nowMs < 60_000) {
      nowMs = pull.wakeMs;
      if (!hasSearch(step(pull, { type: "tick" }, nowMs))) continue;
      step(pull, { type: "search_failed" }, nowMs);
      searches++;
    }
    assert.ok(searches >= 3 && searches < 12, `${searches} searches`);
    assert.equal(pull.outcome?.type, "failed");
    assert.ok(nowMs <= 2 * pullSettings.starvedMsMax, `${nowMs} ms`);
  });

  test("a source that was unreachable is used again when it is offered later", () => {
    const pull = pullThatSearches();
    for (const event of fails(step(pull, foundSource("a"), 0), "source_gone"))
      step(pull, event, 10);
    const sources = [{ endpoint: "a", isComplete: true }];
    step(pull, { type: "search_done", sources }, 20);
    assert.equal(
      pull.outcome?.type,
      "failed",
      "too soon for another chance, and nobody else is there",
    );

    const later = pullThatSearches();
    step(later, foundSource("b"), 0);
    for (const event of fails(step(later, foundSource("a"), 0), "source_gone"))
      step(later, event, 10);
    step(later, { type: "tick" }, 6_000);
    step(later, { type: "search_done", sources }, 6_001);
    assert.equal(later.sources.get("a")?.dropped, null);
  });

  test("a source with a wrong digest is not used again, however often it is offered", () => {
    const pull = pullThatSearches();
    step(pull, foundSource("b"), 0);
    for (const event of fails(step(pull, foundSource("a"), 0), "digest_mismatch"))
      step(pull, event, 10);
    step(pull, { type: "tick" }, 9_000);
    step(pull, { type: "search_done", sources: [{ endpoint: "a", isComplete: true }] }, 9_001);
    assert.equal(pull.sources.get("a")?.dropped?.code, "digest_mismatch");
  });

  test("a pull keeps no more sources than its limit", () => {
    const pull = pullThatSearches();
    const sources = Array.from({ length: 500 }, (_, index) => ({
      endpoint: `s${index}`,
      isComplete: false,
    }));
    step(pull, { type: "search_done", sources }, 0);
    assert.equal(pull.sources.size, pullSettings.sourcesMax);
  });
});
