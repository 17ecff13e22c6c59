// SPDX-License-Identifier: Apache-2.0
// The engines' loaders, with stubs of their engines' classes, under real agents on the fake GPU: the
// second replica of each engine has the first one's values, processed once, in a structure built once.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { startTestCoordinator } from "../support/relight.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";
import { startWeightsReplica, type WeightsReplica } from "../support/weights-replica.ts";

interface LoaderState {
  /** Load formats that the engine was asked for, in order. */
  readonly built: readonly string[];
  readonly holds: boolean;
}

describe("loaders of engines", { timeout: 120_000 }, () => {
  test("the first replica loads its checkpoint, the second takes the first one's weights", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const twoReplicas = async (engine: string) => {
      const options = { coordinator: coordinator.address, engine: ["loader_engine.py", engine] };
      await using first = await startWeightsReplica(folder, `${engine}-a`, {
        ...options,
        salt: engine,
      });
      await first.printed(/healthy/);
      assert.deepEqual(await stateOf(first, engine), { built: ["auto"], holds: true });
      await using second = await startWeightsReplica(folder, `${engine}-b`, {
        ...options,
        salt: "other",
      });
      await second.printed(/healthy/);
      assert.deepEqual(await stateOf(second, engine), { built: ["dummy"], holds: true });
      assert.match(second.output(), /warm: weights( tp1)?: .* from 1 live/);
    };
    // At one coordinator, whose answers must not mix them up.
    await Promise.all([twoReplicas("vllm"), twoReplicas("sglang")]);
  });
});

async function stateOf(replica: WeightsReplica, salt: string): Promise<LoaderState> {
  const response = await fetch(`http://127.0.0.1:${replica.port}/weights?${salt}`);
  return (await response.json()) as LoaderState;
}
