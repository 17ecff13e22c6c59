// SPDX-License-Identifier: Apache-2.0
// Boots are counted once, under labels that an agent cannot make up.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { BootCounter } from "./boot-counter.ts";

const json = (record: object) => Buffer.from(JSON.stringify(record));
const cold = { outcome: "cold", code: null, caches: [{ code: null }, { code: "no_source" }] };

describe("BootCounter.labelsOf()", () => {
  test("counts a boot once, however often it is reported", () => {
    const counter = new BootCounter();
    assert.deepEqual(counter.labelsOf("b1", json(cold)), {
      outcome: "cold",
      code: "no_source",
      trust: "unknown",
    });
    assert.equal(counter.labelsOf("b1", json(cold)), null);
    const trust = { mode: "insecure", policyVersion: null, keyId: null };
    const warm = { outcome: "warm", code: null, trust, caches: [{ code: null }] };
    assert.deepEqual(counter.labelsOf("b2", json(warm)), {
      outcome: "warm",
      code: "none",
      trust: "insecure",
    });
  });

  test("bounds the labels and passes over records that it cannot read", () => {
    const counter = new BootCounter();
    const odd = { outcome: "cold", code: "x".repeat(1_000), caches: [] };
    assert.deepEqual(counter.labelsOf("b1", json(odd)), {
      outcome: "cold",
      code: "internal",
      trust: "unknown",
    });
    assert.equal(counter.labelsOf("b2", Buffer.from("{")), null);
    assert.equal(counter.labelsOf("b3", json({ outcome: "molten", code: null, caches: [] })), null);
  });
});
