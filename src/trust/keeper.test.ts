// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { describe, test } from "node:test";
import {
  alice,
  day,
  factsOf,
  hour,
  mallory,
  now,
  policyDocument,
  root,
} from "../../test/support/trust.ts";
import type { Clock } from "../platform/clock.ts";
import { systemClock } from "../platform/clock.ts";
import { TrustKeeper } from "./keeper.ts";
import { signPolicy, trustSelf } from "./setup.ts";

const { signal } = new AbortController();
const roots = { threshold: 1, keys: [root.publicKey] };

function open() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "relight-trust-"));
  let wallMs = now;
  const clock: Clock = { ...systemClock, wallMs: () => wallMs };
  return {
    folder,
    clock,
    keeper: () => new TrustKeeper(folder, clock),
    pass: (ms: number) => {
      wallMs += ms;
    },
    [Symbol.dispose]: () => fs.rmSync(folder, { recursive: true }),
  };
}

const version = (number: number, changes = {}) =>
  signPolicy(policyDocument({ version: number, ...changes }), [root]);

describe("trust keeper", () => {
  test("offer() accepts nothing before roots are pinned", async () => {
    using place = open();
    const keeper = place.keeper();
    await assert.rejects(keeper.offer(version(1), signal), { code: "policy_missing" });
    assert.equal(keeper.policy, null);
  });

  test("a policy, its mark and the epochs survive a restart", async () => {
    using place = open();
    const keeper = place.keeper();
    await keeper.pin(roots, signal);
    await keeper.offer(version(3), signal);
    await keeper.remember(factsOf({ epoch: 5 }), signal);
    await keeper.remember(factsOf({ epoch: 4 }), signal);
    const again = place.keeper();
    assert.equal(again.policy?.version, 3);
    assert.deepEqual(again.policyEnvelope, version(3));
    assert.equal(again.epochFloor(factsOf()), 5);
    assert.equal(again.epochFloor(factsOf({ model: "org/other" })), 0);
    await assert.rejects(again.offer(version(2), signal), { code: "policy_rollback" });
    assert.equal(fs.statSync(path.join(place.folder, "trust.json")).mode & 0o777, 0o600);
  });

  test("a second process that knows an older policy cannot take the node back to it", async () => {
    using place = open();
    const first = place.keeper();
    await first.pin(roots, signal);
    await first.offer(version(1), signal);
    const second = place.keeper();
    await first.offer(version(2, { minimumEpoch: 1 }), signal);
    await second.remember(factsOf({ epoch: 7 }), signal);
    assert.equal(second.policy?.version, 2);
    assert.equal(place.keeper().policy?.version, 2);
    await assert.rejects(second.offer(version(1), signal), { code: "policy_rollback" });
  });

  test("roots are pinned once: a second pin changes nothing", async () => {
    using place = open();
    const keeper = place.keeper();
    await keeper.pin(roots, signal);
    await keeper.pin({ threshold: 1, keys: [mallory.publicKey] }, signal);
    await assert.rejects(keeper.offer(signPolicy(policyDocument(), [mallory]), signal), {
      code: "policy_invalid",
    });
  });

  test("a damaged file is an error and never an absent policy", async () => {
    using place = open();
    await place.keeper().pin(roots, signal);
    const file = path.join(place.folder, "trust.json");
    const text = fs.readFileSync(file, "utf8");
    for (const damaged of [
      text.slice(0, -2),
      "",
      text.replace('"policy":null', '"policy":"e30="'),
    ]) {
      fs.writeFileSync(file, damaged);
      assert.throws(() => place.keeper(), { code: "store_corrupt" });
    }
  });

  test("trustSelf() makes a policy that trusts this key alone, and renews it before it ends", async () => {
    using place = open();
    const keeper = place.keeper();
    assert.equal(await trustSelf(keeper, alice, { clock: place.clock, signal }), true);
    assert.deepEqual([...(keeper.policy?.keys.keys() ?? [])], [alice.publicKey.keyId]);
    place.pass(hour);
    await trustSelf(keeper, alice, { clock: place.clock, signal });
    assert.equal(keeper.policy?.version, 1);
    place.pass(61 * day);
    await trustSelf(keeper, alice, { clock: place.clock, signal });
    assert.equal(keeper.policy?.version, 2);
    assert.ok((keeper.policy?.expiresAt ?? 0) > now + 100 * day);
  });

  test("trustSelf() leaves a node alone that follows a fleet's roots", async () => {
    using place = open();
    const keeper = place.keeper();
    await keeper.pin(roots, signal);
    assert.equal(await trustSelf(keeper, alice, { clock: place.clock, signal }), false);
    assert.equal(keeper.policyEnvelope, null);
    await keeper.offer(version(1), signal);
    assert.equal(await trustSelf(keeper, alice, { clock: place.clock, signal }), false);
    assert.equal(keeper.policy?.version, 1);
  });
});
