// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  groupConfig,
  ObedientRank,
  operation,
  StillClock,
  settled,
} from "../../test/support/ep-group.ts";
import { rejectsWith } from "../../test/support/rejects.ts";
import { LocalGroup } from "./local.ts";
import { lostExperts } from "./placement.ts";
import type { GroupConfig } from "./view.ts";

describe("LocalGroup", () => {
  test("a scale seats, maps, loads, flips at one step and is done", async () => {
    await using world = await start(2);
    const { group, ranks } = world;
    assert.deepEqual(group.keeper.effective().ranks, [0, 1]);
    assert.equal(record(group).epoch, 1);
    assert.deepEqual(lostExperts(record(group).placement), []);
    const order = ranks[0]?.typesSeen();
    assert.deepEqual(order, ["seat", "map", "prepare", "arm", "commit", "settled"]);
    const done = record(group).finished.at(-1);
    assert.equal(done?.phase, "done");
    assert.deepEqual(
      done?.phases.map(({ phase }) => phase),
      ["planned", "staging", "flipping", "committed", "done"],
    );
  });

  test("a rank joins under traffic at a step that nobody has launched", async () => {
    await using world = await start(2);
    const { group, ranks, clock, config } = world;
    for (let step = 1; step <= 400; step += 40) {
      for (const rank of ranks) rank.run(step);
      await clock.pass(40);
    }
    ranks.push(await ObedientRank.join(group, "c", config));
    await group.begin(operation("grow", { ranks: 3 }));
    for (let step = 401; step <= 600; step += 10) {
      for (const rank of ranks) if (rank.seat !== null) rank.run(step);
      await clock.pass(10);
    }
    assert.deepEqual(group.keeper.effective().ranks, [0, 1, 2]);
    const steps = ranks.map(({ commands }) => commands.findLast((one) => one.type === "commit"));
    const [first] = steps;
    assert.ok(first !== undefined && first.atStep > 361);
    for (const step of steps) assert.deepEqual(step, first);
  });

  test("a rank in the middle leaves and its slot is free once nobody maps it", async () => {
    await using world = await start(3);
    const { group, ranks, clock } = world;
    await group.begin(operation("go", { kind: "remove", remove: [1] }));
    await clock.pass(200);
    assert.deepEqual(group.keeper.effective().ranks, [0, 2]);
    assert.equal(record(group).slots[1]?.state, "EMPTY");
    assert.deepEqual(lostExperts(record(group).placement), []);
    assert.equal(ranks[1]?.commands.at(-1)?.type, "release");
    assert.equal(ranks[0]?.typesSeen().includes("mask"), false);
  });

  test("a killed rank is masked at once and its experts find new owners", async () => {
    await using world = await start(3);
    const { group, ranks, clock } = world;
    await ranks[1]?.session.close();
    await settled();
    assert.deepEqual(group.keeper.effective().ranks, [0, 2]);
    assert.equal(ranks[0]?.commands.filter(({ type }) => type === "mask").length, 1);
    await clock.pass(500);
    const { placement, slots, finished } = record(group);
    assert.deepEqual(lostExperts(placement), []);
    assert.equal(slots[1]?.state, "EMPTY");
    assert.equal(finished.at(-1)?.request.operationId, "recover-2");
  });

  test("a live rank that peers suspect is evicted, told, and comes back as another incarnation", async () => {
    await using world = await start(3);
    const { group, ranks, clock, config } = world;
    ranks[0]?.session.report({ type: "suspect", seat: { slot: 2, incarnation: 1 }, step: 9 });
    await settled();
    assert.equal(record(group).slots[2]?.state, "SUSPECT");
    await clock.pass(200);
    assert.deepEqual(ranks[2]?.commands.at(-1), { type: "evicted", ended: "suspected" });
    assert.equal(record(group).slots[2]?.state, "EMPTY");
    const back = await ObedientRank.join(group, "c-again", config);
    await group.begin(operation("back", { kind: "recover" }));
    await clock.pass(500);
    assert.deepEqual(back.seat, { slot: 2, incarnation: 2 });
    assert.deepEqual(group.keeper.effective().ranks, [0, 1, 2]);
  });

  test("the slot of an evicted rank that says nothing stays taken", async () => {
    await using world = await start(3);
    const { group, ranks, clock, config } = world;
    ranks[2]?.deafTo.add("evicted");
    ranks[0]?.session.report({ type: "suspect", seat: { slot: 2, incarnation: 1 }, step: 9 });
    await clock.pass(500);
    assert.equal(record(group).slots[2]?.state, "DEAD");
    const late = await ObedientRank.join(group, "d", config, 2);
    await group.begin(operation("back", { ranks: 3, timeoutMs: 1_000 }));
    await clock.pass(2_000);
    assert.equal(late.seat, null);
    assert.equal(record(group).finished.at(-1)?.error?.code, "deadline_exceeded");
    assert.deepEqual(group.keeper.effective().ranks, [0, 1]);
  });

  test("an abort before the commit leaves the members as they were", async () => {
    await using world = await start(2);
    const { group, ranks, clock, config } = world;
    const joiner = await ObedientRank.join(group, "c", config);
    joiner.deafTo.add("prepare");
    await group.begin(operation("grow", { ranks: 3 }));
    await clock.pass(200);
    assert.equal(record(group).operation?.phase, "staging");
    await group.abort("grow");
    await clock.pass(200);
    assert.equal(record(group).finished.at(-1)?.phase, "aborted");
    assert.equal(joiner.commands.at(-1)?.type, "release");
    assert.deepEqual(group.keeper.effective().ranks, [0, 1]);
    assert.equal(ranks[0]?.typesSeen().at(-1), "unmap");
    await rejectsWith("ep_committed", group.abort("start"));
  });

  test("a group that is to hold more experts than its ranks can refuses to shrink", async () => {
    await using world = await start(2, { localExpertsMax: 8 });
    const { group, clock } = world;
    await group.begin(operation("shrink", { ranks: 1 }));
    await clock.pass(100);
    assert.equal(record(group).finished.at(-1)?.error?.code, "ep_capacity");
    assert.deepEqual(group.keeper.effective().ranks, [0, 1]);
  });

  test("a rank of another shape is refused", async () => {
    await using world = await start(1);
    const other = groupConfig({ shape: "hidden=7168 topk=8" });
    await rejectsWith("ep_config_differs", ObedientRank.join(world.group, "z", other));
  });
});

async function start(count: number, change: Partial<GroupConfig> = {}) {
  const clock = new StillClock();
  const config = groupConfig(change);
  const group = new LocalGroup({ name: config.group, clock });
  const ranks: ObedientRank[] = [];
  for (const name of ["a", "b", "c", "d"].slice(0, count)) {
    ranks.push(await ObedientRank.join(group, name, config));
  }
  await group.begin(operation("start", { ranks: count }));
  await clock.pass(200);
  return { clock, config, group, ranks, [Symbol.asyncDispose]: () => group.keeper.stop() };
}

function record(group: LocalGroup) {
  const { group: held } = group.keeper;
  assert.ok(held !== null);
  return held;
}
