// SPDX-License-Identifier: Apache-2.0
// `relight run --weights` with real processes on the fake GPU: coordinator, agents, Python engines.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { relightJson, startTestCoordinator } from "../support/relight.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";
import { bootOf, engineWeights, startWeightsReplica } from "../support/weights-replica.ts";

describe("relight run --weights", { timeout: 120_000 }, () => {
  test("the first replica loads from disk and offers; the second takes them, and a third from the second", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const at = { coordinator: coordinator.address };
    await using first = await startWeightsReplica(folder, "a", { ...at, salt: "one" });
    await first.printed(/cold: weights: no_source/);
    await first.printed(/offering weights: 7 tensors/);

    await using second = await startWeightsReplica(folder, "b", { ...at, salt: "other" });
    await second.printed(/warm: weights: .* from 1 live/);
    await second.printed(/offering weights/);
    await second.printed(/healthy/);
    const weights = await engineWeights(second, "one");
    assert.equal(weights.warm, true);
    assert.deepEqual(weights.holds, [true, true]);
    const [record] = (await bootOf(second)).weights;
    assert.equal(record?.state, "loaded");
    assert.equal(record?.tensors, 7);
    assert.match(record?.sources[0] ?? "", /^unix:\/\/[0-9a-f-]{36}\//);

    first.child.kill("SIGTERM");
    assert.equal(await first.exited, 143);
    await using third = await startWeightsReplica(folder, "c", { ...at, salt: "third" });
    await third.printed(/healthy/);
    assert.deepEqual((await engineWeights(third, "one")).holds, [true, true]);
    const why = await relightJson<{ sentences: string[] }>([
      "boot",
      "why",
      `--state-dir=${third.state}`,
    ]);
    assert.match(why.value.sentences.join(" "), /weights came from 1 live replica:/);
  });
});
