// SPDX-License-Identifier: Apache-2.0
// Some dozens of seeds on every change, their base from the commit, so that each commit plays others;
// seeds that once failed, by name; and canaries, which must be caught.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Defect } from "./fleet.ts";
import { seedOfCommit } from "./seed.ts";
import { playFanOut, playSwarm, type SwarmResult } from "./simulate.ts";

const seedCount = 12;
const replicas = 16;

describe("simulation", () => {
  test(`a fleet under faults keeps every rule, then converges (${seedCount} seeds)`, async () => {
    const base = seedOfCommit();
    const looks: SwarmResult["looks"][] = [];
    for (let seed = base; seed < base + seedCount; seed++) {
      looks.push((await assertGood({ seed, replicas, isRelaying: seed % 6 !== 0 })).looks);
    }
    for (const name of Object.keys(looks[0] ?? {})) {
      const total = looks.reduce((sum, look) => sum + (look[name] ?? 0), 0);
      assert.ok(total > 0, `the checker of ${name} never looked`);
    }
  });

  test("a seed gives the same history every time", async () => {
    const options = { seed: 3, replicas: 10, isRelaying: true };
    assert.deepEqual(await playSwarm(options), await playSwarm(options));
  });

  test("seed 1: the last piece is asked for though each source is slower than all others together", async () => {
    await assertGood({ seed: 1, replicas: 20, isRelaying: true });
  });

  test("seed 12: an offer whose answer was lost is taken back when the transfer fails", async () => {
    await assertGood({ seed: 12, replicas: 20, isRelaying: true });
  });

  test("seed 37: a large piece on a slow link is not taken from one source after the other", async () => {
    await assertGood({ seed: 37, replicas: 20, isRelaying: true });
  });

  test("seed 98769903: a publication that arrives twice, the second time late, stays taken back", async () => {
    await assertGood({ seed: 98_769_903, replicas: 16, isRelaying: true });
  });

  test("a fan-out with relaying takes less than three times as long for 50 replicas as for one", async () => {
    const one = await playFanOut({ seed: 1, replicas: 1, isRelaying: true });
    const fifty = await playFanOut({ seed: 1, replicas: 50, isRelaying: true });
    const direct = await playFanOut({ seed: 1, replicas: 50, isRelaying: false });
    for (const { violations } of [one, fifty, direct]) assert.deepEqual(violations, []);
    assert.deepEqual([one.warm, fifty.warm, direct.warm], [1, 50, 50]);
    assert.ok(fifty.seconds < 3 * one.seconds, `${fifty.seconds} s against ${one.seconds} s`);
    assert.ok(direct.seconds > 4 * fifty.seconds, `${direct.seconds} s against ${fifty.seconds} s`);
  });
});

describe("canary simulation", () => {
  test("targets that write what they did not verify are caught", async () => {
    const caught = await firstObjection("blind", "not verified");
    assert.ok(caught !== null, "no checker saw that unverified pieces were installed");
  });

  test("a source that admits everybody is caught", async () => {
    const caught = await firstObjection("crowded", "readers, admits");
    assert.ok(caught !== null, "no checker saw that a source served more than it admits");
  });

  test("a coordinator that forgets to end sessions is caught", async () => {
    const caught = await firstObjection("forgetful", "ms ago");
    assert.ok(caught !== null, "no checker saw that a lost source was offered");
  });
});

/** Of a dozen seeds with this defect, the first violation that says so. */
async function firstObjection(defect: Defect, words: string): Promise<string | null> {
  for (let seed = 1; seed <= 12; seed++) {
    const { violations } = await playSwarm({ seed, replicas: 10, isRelaying: true, defect });
    const objection = violations.find((violation) => violation.includes(words));
    if (objection !== undefined) return objection;
  }
  return null;
}

async function assertGood(options: Parameters<typeof playSwarm>[0]): Promise<SwarmResult> {
  const result = await playSwarm(options);
  const { seed, replicas: count, isRelaying } = options;
  const again = `npm run sim -- --seed=${seed} --replicas=${count}${isRelaying ? "" : " --no-relay"}`;
  assert.deepEqual(result.violations, [], `faults: ${result.faults.join(" ")}; again: ${again}`);
  return result;
}
