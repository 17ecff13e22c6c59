// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Metrics, type MetricTable, metrics } from "./metrics.ts";

const table = {
  test_calls_total: { type: "counter", unit: "calls", labels: ["code"], about: "Calls." },
  test_open: { type: "gauge", unit: "sources", labels: [], about: "Open." },
  test_duration_ms: { type: "histogram", unit: "ms", labels: [], about: "Time.", buckets: [1, 10] },
} as const satisfies MetricTable;

describe("Metrics", () => {
  test("renders what was counted, set and observed", async () => {
    const page = new Metrics(table);
    page.count("test_calls_total", { code: "ok" });
    page.count("test_calls_total", { code: "ok" }, 2);
    page.set("test_open", {}, 7);
    page.observe("test_duration_ms", {}, 5);
    const text = await page.render();
    assert.match(text, /^test_calls_total\{code="ok"\} 3$/m);
    assert.match(text, /^test_open 7$/m);
    assert.match(text, /^test_duration_ms_bucket\{le="10"\} 1$/m);
  });

  test("keeps two instances apart", async () => {
    const [one, other] = [new Metrics(table), new Metrics(table)];
    one.set("test_open", {}, 1);
    assert.doesNotMatch(await other.render(), /^test_open 1$/m);
  });
});

describe("the table of metrics", () => {
  test("spells every name in snake case with our prefix, counters in _total", () => {
    for (const [name, facts] of Object.entries<MetricTable[string]>(metrics)) {
      assert.match(name, /^relight_[a-z0-9_]+$/);
      assert.equal(name.endsWith("_total"), facts.type === "counter", name);
      assert.equal(facts.buckets !== undefined, facts.type === "histogram", name);
    }
  });
});
