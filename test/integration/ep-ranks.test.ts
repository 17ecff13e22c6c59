// SPDX-License-Identifier: Apache-2.0
// A group of real processes on the fake GPU: a mixture-of-experts layer whose every output row is checked,
// through join, kill, recovery and leave.

import assert from "node:assert/strict";
import { test } from "node:test";
import { type RankProcess, Ranks } from "../../src/cli/ep-ranks.ts";

const signal = AbortSignal.timeout(100_000);
const shape = {
  ...{ group: "test", slotCount: 4, hidden: 32, inner: 32, experts: 8, redundant: 0 },
  ...{ localExpertsMax: 8, topk: 2, tokens: 4 },
};
const options = {
  ...({ backend: "fake", deviceCount: 1, shape, timeoutMs: 5_000, blasFile: null } as const),
  ...{ stepsPerRun: 1, comesBack: false, blocks: 1 },
};

test("a group of processes grows, loses a rank to SIGKILL, recovers and lets one go, and every row is right", async () => {
  await using ranks = new Ranks(options);
  const [first, second] = ranks.start(2);
  assert(first !== undefined && second !== undefined);
  await ranks.operate({ kind: "scale", ranks: 2 }, signal);
  await moved(ranks, 3);
  const [third] = ranks.start(1);
  assert(third !== undefined);
  await ranks.operate({ kind: "scale", ranks: 3 }, signal);
  await moved(ranks, 3);

  second.signal("SIGKILL");
  const dead = second.slot;
  await ranks.until(() => alive(ranks).every((rank) => told(rank, "died")), "the death", signal);
  await ranks.until(() => lostOf(ranks) === 0, "every expert owned again", signal);
  await moved(ranks, 3);
  assert.deepEqual(
    alive(ranks).map(({ slot }) => slot),
    [first.slot, third.slot],
  );

  ranks.start(1);
  await ranks.operate({ kind: "scale", ranks: 3 }, signal);
  await moved(ranks, 3);
  assert.equal(ranks.all.at(-1)?.slot, dead, "the slot of the dead is free again");
  await ranks.operate({ kind: "remove", remove: [first.slot ?? -1] }, signal);
  await ranks.until(() => told(first, "ended"), "the leaver's release", signal);
  await first.exited;
  await moved(ranks, 3);

  const steps = ranks.all.flatMap((rank) => rank.steps);
  assert.ok(steps.reduce((sum, { rows }) => sum + rows, 0) >= 4 * 30);
  assert.deepEqual(
    steps.filter(({ wrong }) => wrong > 0),
    [],
  );
  assert.ok(steps.some(({ members }) => members === 0b111));
});

test("a rank that stands still for longer than the kernels wait is evicted, told, and comes back", async () => {
  await using ranks = new Ranks({ ...options, timeoutMs: 400 });
  const [first, second, third] = ranks.start(3);
  assert(first !== undefined && second !== undefined && third !== undefined);
  await ranks.operate({ kind: "scale", ranks: 3 }, signal);
  await moved(ranks, 3);
  const before = third.session?.seat;
  third.signal("SIGSTOP");
  await ranks.until(() => told(first, "died") && told(second, "died"), "the verdict", signal);
  third.signal("SIGCONT");
  await ranks.until(() => told(third, "ended"), "the word to the evicted", signal);
  await ranks.operate({ kind: "scale", ranks: 3 }, signal);
  await moved(ranks, 3);
  assert.notEqual(third.session?.seat?.incarnation, before?.incarnation);
  assert.ok(third.isAlive);
  const faulty = [first, second].flatMap(({ steps }) => steps.filter(({ isGood }) => !isGood));
  assert.ok(faulty.length > 0, "the step that lacked it says so");
  const wrong = ranks.all.flatMap(({ steps }) => steps.filter((step) => step.wrong > 0));
  assert.deepEqual(wrong, []);
});

function alive(ranks: Ranks): RankProcess[] {
  return ranks.alive.filter((rank) => rank.slot !== null && !told(rank, "ended"));
}

/** Every member has done more good steps since now. */
async function moved(ranks: Ranks, count: number): Promise<void> {
  const before = new Map(alive(ranks).map((rank) => [rank, goodSteps(rank)]));
  const isSo = () => [...before].every(([rank, good]) => goodSteps(rank) >= good + count);
  await ranks.until(isSo, `${count} more good steps of each rank`, signal);
}

function goodSteps(rank: RankProcess): number {
  return rank.steps.filter(({ isGood, missing }) => isGood && missing === 0).length;
}

function told(rank: RankProcess, type: string): boolean {
  return rank.events.some(({ event }) => event.type === type);
}

function lostOf(ranks: Ranks): number {
  return ranks.group.keeper.group?.placement.filter((copies) => copies.length === 0).length ?? 0;
}
