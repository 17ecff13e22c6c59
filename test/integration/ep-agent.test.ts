// SPDX-License-Identifier: Apache-2.0
// The whole way without a GPU: a coordinator on LMDB, an agent's host of ranks, and ranks that run a layer on
// the fake GPU with every row checked. Each of them is killed once.

import assert from "node:assert/strict";
import { test } from "node:test";
import type { FromRank } from "../../src/cli/ep-link.ts";
import { RankProcess, spawnRank } from "../../src/cli/ep-ranks.ts";
import { EpWorld } from "../support/ep-world.ts";

const scale = "OPERATION_KIND_SCALE";

test("ranks on GPUs join through the agent, and outlive a rank, the agent and the coordinator", async () => {
  await using world = await EpWorld.open();
  const ranks: RankProcess[] = [];
  const grow = async (count: number) => {
    while (living(ranks).length < count) ranks.push(startRank(world, ranks.length));
    const id = `to-${count}-${ranks.length}`;
    await world.until("the group", () =>
      world.status().then(
        () => true,
        () => false,
      ),
    );
    await world.begin(id, { kind: scale, ranks: count });
    await world.untilPhase(id, "done");
    await moved(world, ranks);
  };
  try {
    await grow(2);
    await grow(3);
    await world.killHost();
    await moved(world, ranks);
    await world.startHost();
    await world.killCoordinator();
    await moved(world, ranks);
    await world.startCoordinator();
    ranks[1]?.signal("SIGKILL");
    await world.until(
      "the verdict",
      async () => (await world.status()).effective_ranks.length === 2,
    );
    await world.until("every expert", async () => (await world.status()).lost_experts.length === 0);
    await moved(world, ranks);
    await grow(3);
    const steps = ranks.flatMap((rank) => rank.steps);
    assert.ok(steps.filter(({ isGood, members }) => isGood && members === 0b111).length > 0);
    assert.deepEqual(
      steps.filter(({ wrong }) => wrong > 0),
      [],
    );
    assert.deepEqual(
      ranks.flatMap(({ failure }) => failure ?? []),
      [],
    );
  } finally {
    for (const rank of living(ranks)) rank.signal("SIGKILL");
    await Promise.all(ranks.map(({ exited }) => exited));
  }
});

function startRank(world: EpWorld, number: number): RankProcess {
  const child = spawnRank();
  const rank = new RankProcess(child, {
    ...({ backend: "fake", ordinal: 0, number, memberId: `rank-${number}`, blocks: 1 } as const),
    ...{ agentSocket: world.socketPath, directory: world.windowsPath, blasFile: null },
    ...{ timeoutMs: 5_000, comesBack: false, stepsPerRun: 1 },
    shape: {
      ...{ group: world.config.group, slotCount: 4, hidden: 32, inner: 32, experts: 8 },
      ...{ redundant: 0, localExpertsMax: 8, topk: 2, tokens: 4 },
    },
  });
  child.on("message", (message: FromRank) => {
    if (message.from !== "join" && message.from !== "report") rank.hear(message);
  });
  return rank;
}

function living(ranks: readonly RankProcess[]): RankProcess[] {
  return ranks.filter(({ isAlive }) => isAlive);
}

/** Every rank has done more good steps with every expert since now. */
async function moved(world: EpWorld, ranks: readonly RankProcess[]): Promise<void> {
  const good = (rank: RankProcess) =>
    rank.steps.filter(({ isGood, missing }) => isGood && missing === 0).length;
  const before = living(ranks).map((rank) => [rank, good(rank)] as const);
  await world.until("good steps", () => before.every(([rank, count]) => good(rank) >= count + 3));
}
