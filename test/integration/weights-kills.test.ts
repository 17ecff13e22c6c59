// SPDX-License-Identifier: Apache-2.0
// SIGKILL at each moment of a load: of the source's engine, of its agent, of the target's agent. Whatever
// dies, a target ends with one source's values, all of them, and whoever lives goes on serving.

import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { EngineCommand } from "../contracts/weights-engine-process.ts";
import { inWorld, type Part, untilLoaded, type World } from "../contracts/weights-world.ts";
import { type Moment, phaseProxy } from "../support/phase-proxy.ts";

/** Offer: the manifest. Claim: the lease and the handles; the copy follows. Renew: after the copy. */
const moments: readonly Moment[] = ["before offer", "before claim", "after claim", "before renew"];

const fake = { backend: "fake", deviceCount: 2 } as const;

describe("SIGKILL in a load", { timeout: 120_000 }, () => {
  for (const victim of ["engine", "agent"] as const) {
    test(`of the source's ${victim} at each moment: the target has the values, from it or from another`, async () => {
      await Promise.all(moments.map((moment) => killSource(victim, moment)));
    });
  }

  test("of the target's agent at each moment: its engine hears of it, the source serves the next", async () => {
    await Promise.all(moments.map((moment) => killTarget(moment)));
  });
});

async function killSource(victim: "engine" | "agent", moment: Moment): Promise<void> {
  await inWorld(fake, async (world) => {
    const dying = world.agent("a", { isProcess: victim === "agent" });
    const [live, to] = [world.agent("b"), world.agent("c")];
    const one = await filled(world, dying, { isProcess: victim === "engine" });
    await filled(world, live, {});
    const target = world.engine(to, { isTarget: true });
    using proxy = at(world, dying, moment, () => (victim === "agent" ? dying : one).kill());
    const sources = [proxy.socket, live.socket];
    await target.ask({ do: "load", sources, content: null });
    assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), [], moment);
  });
}

async function killTarget(moment: Moment): Promise<void> {
  await inWorld(fake, async (world) => {
    const from = world.agent("a", { readersMax: 1 });
    const doomed = world.agent("b", { isProcess: true });
    const source = await filled(world, from, {});
    const target = world.engine(doomed, { isTarget: true, isProcess: true });
    await target.ask({ do: "poison" });
    using proxy = at(world, from, moment, () => doomed.kill());
    const failed = await target.fail(load(proxy.socket));
    assert.equal(failed.code, "source_unreachable", moment);
    // The one reader that the source admits is gone, and its lease with it.
    const next = world.engine(world.agent("c"), { isTarget: true });
    await untilLoaded(next, load(from.socket));
    assert.deepEqual(await next.ask({ do: "differing", salt: "x" }), [], moment);
    assert.deepEqual(await source.ask({ do: "differing", salt: "x" }), [], moment);
  });
}

async function filled(
  world: World,
  agent: Part,
  over: { readonly isProcess?: boolean },
): Promise<Part> {
  const engine = world.engine(agent, over);
  await engine.ask({ do: "fill", salt: "x" });
  await engine.ask({ do: "publish" });
  return engine;
}

function at(world: World, source: Part, moment: Moment, kill: () => Promise<void>) {
  let isDone = false;
  return phaseProxy(join(world.directory, "proxy"), source.socket, async (now) => {
    if (now !== moment || isDone) return;
    isDone = true;
    await kill();
  });
}

function load(socket: string): EngineCommand {
  return { do: "load", sources: [socket], content: null };
}
