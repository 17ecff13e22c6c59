// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { test } from "node:test";
import { sourceHead } from "../../test/support/source-head.ts";
import { decodeHead, encodeHead } from "./lmdb-form.ts";

test("decodeHead() gives what encodeHead() was given, the publisher included", () => {
  for (const publisher of ["spiffe://fleet/author/node-a", null]) {
    const head = sourceHead({ publisher });
    assert.deepEqual(decodeHead(head, encodeHead(head)), head);
  }
});

test("decodeHead() reads a record of a version that knew no publishers", () => {
  const head = sourceHead();
  const old = encodeHead(head).slice(0, -1);
  assert.deepEqual(decodeHead(head, old), { ...head, publisher: null });
});

test("decodeHead() refuses a publisher that is no text", () => {
  const head = sourceHead();
  const wrong = [...encodeHead(head).slice(0, -1), 7];
  assert.throws(() => decodeHead(head, wrong), { code: "store_corrupt" });
});
