// SPDX-License-Identifier: Apache-2.0
// Expert groups of real processes: published plans of joins, leaves and deaths replayed with SIGKILL, and
// kills of every kind of process in every phase of an operation.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { EpWorld } from "../support/ep-world.ts";

const scale = "OPERATION_KIND_SCALE";

describe("expert groups of processes", () => {
  test("plan expansion_contraction: 4, 8, one leaves and one is killed, 8 again", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 4; rank++) world.addRank();
    await world.scale(4);
    for (let rank = 0; rank < 4; rank++) world.addRank();
    await world.scale(8);
    const [leaver, victim] = [world.rankAt(5), world.rankAt(6)];
    await world.begin("leave", { kind: "OPERATION_KIND_REMOVE", remove: [5] });
    await world.untilPhase("leave", "done");
    await victim.kill();
    await world.untilGood(6);
    assert.deepEqual((await world.status()).effective_ranks, [0, 1, 2, 3, 4, 7]);
    await leaver.exited;
    assert.ok(leaver.said("released"));
    for (let rank = 0; rank < 2; rank++) world.addRank();
    await world.scale(8);
    const { slots, lost_experts: lost } = await world.status();
    assert.deepEqual(lost, []);
    assert.deepEqual([slots[5]?.incarnation, slots[6]?.incarnation], [2, 2]);
  });

  test("plan expansion_fault_contraction: 2, 4, one is killed, one leaves", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 2; rank++) world.addRank();
    await world.scale(2);
    for (let rank = 0; rank < 2; rank++) world.addRank();
    await world.scale(4);
    await world.rankAt(2).kill();
    await world.untilGood(3);
    await world.begin("contract", { kind: "OPERATION_KIND_REMOVE", remove: [1] });
    await world.untilPhase("contract", "done");
    await world.untilGood(2);
    const { effective_ranks: effective, lost_experts: lost } = await world.status();
    assert.deepEqual([effective, lost], [[0, 3], []]);
  });

  test("a coordinator killed in each phase takes the operation up and ends it", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 2; rank++) world.addRank({ arm: 60, commit: 60 });
    await world.scale(2);
    await world.begin("grow", { kind: scale, ranks: 3, timeout_ms: 60_000 });
    for (const phase of ["planned", "staging", "flipping", "committed"]) {
      await world.untilSeen("grow", phase);
      await world.killCoordinator();
      await world.startCoordinator();
      if (phase === "planned") world.addRank({ prepare: 300, arm: 60, commit: 60 });
    }
    await world.untilPhase("grow", "done");
    await world.untilGood(3);
    for (const rank of world.ranks) assert.equal(rank.said("faulty"), false);
  });

  test("a joiner killed in each phase costs its seat only, and another one takes it", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 2; rank++) world.addRank({ arm: 60, commit: 60 });
    await world.scale(2);
    for (const phase of ["staging", "flipping", "committed"]) {
      const id = `grow-${phase}`;
      const joiner = world.addRank({ prepare: 200, arm: 150, commit: 150 });
      await world.begin(id, { kind: scale, ranks: 3, timeout_ms: 60_000 });
      await world.untilSeen(id, phase);
      await joiner.kill();
      if (phase !== "committed") world.addRank();
      await world.untilPhase(id, "done");
      await world.untilGood(phase === "committed" ? 2 : 3);
      if (phase !== "committed") await world.scale(2);
    }
    // What only the dead one held is loaded elsewhere without anybody asking.
    await world.until("every expert", async () => (await world.status()).lost_experts.length === 0);
  });

  test("a member killed in each phase is masked, and the operation goes on without it", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 3; rank++) world.addRank({ arm: 60, commit: 60 });
    await world.scale(3);
    for (const phase of ["staging", "flipping", "committed"]) {
      const id = `remove-${phase}`;
      const { effective_ranks: effective } = await world.status();
      const [stays = 0, leaves = 0, dies = 0] = effective;
      await world.begin(id, { kind: "OPERATION_KIND_REMOVE", remove: [leaves] });
      await world.untilSeen(id, phase);
      await world.rankAt(dies).kill();
      await world.untilPhase(id, "done");
      await world.untilGood(1);
      assert.deepEqual((await world.status()).effective_ranks, [stays]);
      for (let rank = 0; rank < 2; rank++) world.addRank({ arm: 60, commit: 60 });
      await world.scale(3);
    }
    assert.deepEqual((await world.status()).lost_experts, []);
  });

  test("ranks go on through a killed agent and are taken up by the next one", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 2; rank++) world.addRank();
    await world.scale(2);
    await world.killHost();
    await world.startHost();
    world.addRank();
    await world.scale(3);
    assert.deepEqual((await world.status()).effective_ranks, [0, 1, 2]);
    for (const rank of world.ranks) assert.equal(rank.said("evicted"), false);
  });

  test("a rank that is stopped is evicted, told when it goes on, and comes back as another incarnation", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 3; rank++) world.addRank();
    await world.scale(3);
    const stopped = world.rankAt(1);
    stopped.child.kill("SIGSTOP");
    await world.until("the verdict", async () => (await world.status()).slots[1]?.state === "DEAD");
    await world.untilGood(2);
    assert.equal((await world.status()).slots[1]?.ended, "suspected");
    stopped.child.kill("SIGCONT");
    await stopped.exited;
    assert.ok(stopped.said("evicted"));
    world.addRank();
    await world.scale(3);
    assert.equal((await world.status()).slots[1]?.incarnation, 2);
  });

  test("a rank that the group went on without is refused when it resumes, and told", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 2; rank++) world.addRank();
    await world.scale(2);
    const [stays, stale] = [world.rankAt(0), world.rankAt(1)];
    await world.killHost();
    await world.begin("gone", { kind: "OPERATION_KIND_REMOVE", remove: [1], confirms_death: true });
    await world.startHost();
    await stale.exited;
    assert.ok(stale.said("evicted"));
    await world.untilPhase("gone", "done");
    await world.untilGood(1);
    assert.equal(stays.said("evicted"), false);
  });

  test("a rank of another shape is refused and ends", async () => {
    await using world = await EpWorld.open();
    world.addRank();
    await world.scale(1);
    const other = world.addRank({}, { shape: "hidden=7168 topk=8" });
    await other.exited;
    assert.deepEqual(other.lines, [{ type: "refused", code: "ep_config_differs" }]);
  });

  test("operations over HTTP: by id, by epoch, taken back, and refused in words of the error table", async () => {
    await using world = await EpWorld.open();
    for (let rank = 0; rank < 2; rank++) world.addRank();
    await world.scale(2);
    const grow = { kind: scale, ranks: 4, timeout_ms: 60_000, expected_epoch: 1 };
    await world.begin("grow", grow);
    await world.begin("grow", grow);
    const refused = async (body: object) => (await world.post("operations", body)).answer;
    const codeOf = async (body: object) => (await refused(body)) as { code: string };
    assert.equal((await codeOf({ operation_id: "grow", ...grow, ranks: 3 })).code, "conflict");
    assert.equal((await codeOf({ operation_id: "two", ...grow })).code, "ep_operation_open");
    assert.equal(
      (await codeOf({ operation_id: "three", kind: scale, ranks: 99 })).code,
      "request_invalid",
    );
    assert.equal((await codeOf({ operation_id: "four", wrong: 1 })).code, "request_invalid");
    assert.equal(await world.abort("grow"), 202);
    await world.untilPhase("grow", "aborted");
    assert.equal((await world.status("grow")).operation?.error_code, "cancelled");
    assert.equal(
      (await codeOf({ operation_id: "old", ...grow, expected_epoch: 7 })).code,
      "ep_epoch_changed",
    );
    await world.begin("short", { kind: scale, ranks: 3, timeout_ms: 200 });
    await world.untilPhase("short", "aborted");
    assert.deepEqual((await world.status()).effective_ranks, [0, 1]);
  });
});
