// SPDX-License-Identifier: Apache-2.0
// The attacks that take little time, each refused with its code; `npm run attack` plays all. The suite can
// fail: the canary gets through.

import assert from "node:assert/strict";
import { test } from "node:test";
import { runAttacks } from "./suite.ts";

test("every attack is refused by code, and the canary is not", async (context) => {
  const { outcomes, canary } = await runAttacks({ isQuick: true, onOutcome: () => {} });
  const accepted = outcomes.filter((outcome) => outcome.accepted !== null);
  assert.deepEqual(accepted, []);
  assert.equal(canary, null);
  assert.ok(outcomes.length >= 40, `${outcomes.length} attacks`);
  context.diagnostic(`${outcomes.length} attacks refused`);
});
