// SPDX-License-Identifier: Apache-2.0
// Boots are counted once, under labels that an agent cannot make up.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { BootCounter } from "./boot-counter.ts";

const json = (record: object) => Buffer.from(JSON.stringify(record));
const cold = { outcome: "cold", code: null, caches: [{ code: null }, { code: "no_source" }] };

describe("BootCounter.countsOf()", () => {
  test("counts a boot once, however often it is reported", () => {
    const counter = new BootCounter();
    assert.deepEqual(counter.countsOf("b1", json(cold))?.boot, {
      outcome: "cold",
      code: "no_source",
      trust: "unknown",
    });
    assert.equal(counter.countsOf("b1", json(cold)), null);
    const trust = { mode: "insecure", policyVersion: null, keyId: null };
    const warm = { outcome: "warm", code: null, trust, caches: [{ code: null }] };
    assert.deepEqual(counter.countsOf("b2", json(warm))?.boot, {
      outcome: "warm",
      code: "none",
      trust: "insecure",
    });
  });

  test("bounds the labels and passes over records that it cannot read", () => {
    const counter = new BootCounter();
    const odd = { outcome: "cold", code: "x".repeat(1_000), caches: [] };
    assert.deepEqual(counter.countsOf("b1", json(odd))?.boot, {
      outcome: "cold",
      code: "internal",
      trust: "unknown",
    });
    assert.equal(counter.countsOf("b2", Buffer.from("{")), null);
    assert.equal(counter.countsOf("b3", json({ outcome: "molten", code: null, caches: [] })), null);
  });

  test("counts each part of the weights, and a boot only once it has an outcome", () => {
    const counter = new BootCounter();
    const weights = [
      { state: "loaded", code: null },
      { state: "cold", code: "layout_mismatch" },
    ];
    const record = { outcome: "partial", code: null, caches: [], weights };
    assert.equal(counter.countsOf("b1", json({ ...record, outcome: null })), null);
    const counts = counter.countsOf("b1", json(record));
    assert.equal(counts?.boot.code, "layout_mismatch");
    assert.deepEqual(counts?.weights, [
      { outcome: "loaded", code: "none" },
      { outcome: "cold", code: "layout_mismatch" },
    ]);
  });
});
