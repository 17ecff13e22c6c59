// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { groupConfig, occupant, operation } from "../../test/support/ep-group.ts";
import { type Code, RelightError } from "../errors.ts";
import { beginOperation } from "./begin.ts";
import { decide } from "./controller.ts";
import { controllerLimits, type Group, newGroup, viewOf } from "./group.ts";
import { firstStatus } from "./status.ts";
import {
  encode,
  readJoin,
  readRankMessage,
  readRecord,
  readStatus,
  readView,
  statusBytesMax,
} from "./wire.ts";

describe("words of an expert group", () => {
  test("a record, a view, a status and a request come back as they were", () => {
    const group = busyGroup();
    assert.deepEqual(readRecord(encode(group)), group);
    assert.deepEqual(readView(encode(viewOf(group))), viewOf(group));
    const status = { ...firstStatus("m"), seat: { slot: 3, incarnation: 255 }, ready: 7 };
    assert.deepEqual(readStatus(encode(status)), status);
    const request = { config: groupConfig(), occupant: occupant("a"), wantedSlot: null };
    assert.deepEqual(readJoin(encode(request)), request);
  });

  test("what is malformed is refused by a code, never by another error", () => {
    const readers: [Code, (bytes: Uint8Array) => unknown][] = [
      ["request_invalid", readStatus],
      ["request_invalid", readJoin],
      ["request_invalid", readRankMessage],
      ["coordinator_refused", readView],
      ["store_corrupt", readRecord],
    ];
    const whole = encode(busyGroup());
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 200 }),
          fc.json().map((text) => Buffer.from(text)),
          fc.nat(whole.length - 1).map((length) => whole.subarray(0, length)),
        ),
        (bytes) => {
          for (const [code, read] of readers) refuses(code, () => read(bytes));
        },
      ),
      { numRuns: 200 },
    );
  });

  test("slots, incarnations, counts and unknown fields outside their limits are refused", () => {
    const status = firstStatus("m");
    for (const wrong of [
      { ...status, seat: { slot: 32, incarnation: 1 } },
      { ...status, seat: { slot: 0, incarnation: 256 } },
      { ...status, launchedStep: -1 },
      { ...status, launchedStep: 1.5 },
      { ...status, memberId: "" },
      { ...status, more: 1 },
      { ...status, holds: Array.from({ length: 257 }, () => ({ slot: 0, incarnation: 1 })) },
    ]) {
      refuses("request_invalid", () => readStatus(encode(wrong)));
    }
    refuses("request_invalid", () => readStatus(Buffer.alloc(statusBytesMax + 1, 32)));
    for (const change of [{ slotCount: 33 }, { expertCount: 513 }, { group: "../up" }]) {
      const config = groupConfig(change);
      const request = { config, occupant: occupant("a"), wantedSlot: null };
      refuses("request_invalid", () => readJoin(encode(request)));
    }
  });
});

/** One in the middle of its first operation. */
function busyGroup(): Group {
  const now = { nowMs: 1_000, limits: controllerLimits };
  const candidates = new Map(
    ["a", "b"].map((name) => [name, { occupant: occupant(name), wantedSlot: null, sinceMs: 1 }]),
  );
  const known = { sinceMs: 0, heard: new Map(), candidates, load: [] };
  return decide(newGroup(groupConfig()), known, now, (group) =>
    beginOperation(group, operation("start", { ranks: 2 }), { by: "operator", nowMs: 1_000 }),
  );
}

function refuses(code: Code, act: () => unknown): void {
  assert.throws(act, (error) => {
    assert.ok(error instanceof RelightError, String(error));
    assert.equal(error.code, code);
    return true;
  });
}
