// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Clock } from "../platform/clock.ts";
import { newestOnly } from "./newest-only.ts";

describe("newestOnly()", () => {
  test("works on the first at once, on one at a time, and of a flood on the newest only", async () => {
    const pauses: PromiseWithResolvers<void>[] = [];
    const clock: Clock = {
      wallMs: () => 0,
      monotonicMs: () => 0,
      sleep: () => {
        const pause = Promise.withResolvers<void>();
        pauses.push(pause);
        return pause.promise;
      },
    };
    const worked: number[] = [];
    const { signal } = new AbortController();
    const hear = newestOnly<number>(async (value) => void worked.push(value), {
      pauseMs: 1_000,
      clock,
      signal,
    });
    for (let value = 0; value < 1_000; value++) hear(value);
    await new Promise(setImmediate);
    assert.deepEqual(worked, [0], "the pause is kept");
    pauses[0]?.resolve();
    await new Promise(setImmediate);
    assert.deepEqual(worked, [0, 999]);
    pauses[1]?.resolve();
    await new Promise(setImmediate);
    hear(7);
    assert.deepEqual(worked, [0, 999, 7], "nothing is left waiting");
  });

  test("hears nothing any more once its signal has fired", async () => {
    const stop = new AbortController();
    const worked: number[] = [];
    const clock: Clock = { wallMs: () => 0, monotonicMs: () => 0, sleep: async () => {} };
    const work = async (value: number) => void worked.push(value);
    const hear = newestOnly(work, { pauseMs: 1, clock, signal: stop.signal });
    stop.abort();
    hear(1);
    await new Promise(setImmediate);
    assert.deepEqual(worked, []);
  });
});
