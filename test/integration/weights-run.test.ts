// SPDX-License-Identifier: Apache-2.0
// `relight run --weights` with real processes on the fake GPU: coordinator, agents, Python engines.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gatedProxy } from "../support/gated-proxy.ts";
import { freePort, relight, relightJson, startTestCoordinator } from "../support/relight.ts";
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

  test("the engine starts while its caches arrive, and is held in its load until they are there", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const at = { coordinator: coordinator.address };
    const port = await freePort();
    await using proxy = await gatedProxy(() => ({ port }));
    folder.write("a/cache/kernel.txt", "compiled");
    const flags = [`--agent-listen=127.0.0.1:${port}`, `--agent-advertise=${proxy.url}`];
    await using first = await startWeightsReplica(folder, "a", { ...at, flags });
    await first.printed(/offering weights/);
    await first.printed(/published jit/);

    await using second = await startWeightsReplica(folder, "b", at);
    await proxy.asked;
    await second.printed(/warm: weights/);
    assert.doesNotMatch(second.output(), /warm: jit|healthy/);
    proxy.open();
    await second.printed(/healthy/);
    assert.match(second.output(), /warm: jit[\s\S]*healthy/);
    const boot = await bootOf(second);
    const phase = (name: string) => boot.phases.find((one) => one.name === name);
    const [fetched, weights] = [phase("fetch jit"), phase("weights")];
    assert.ok((fetched?.startMs ?? 0) <= (weights?.endMs ?? 0), "they overlap");
    assert.ok((weights?.endMs ?? 0) <= (fetched?.endMs ?? 0), "they overlap");
    assert.equal(boot.caches[0]?.state, "installed");
    await using drawn = relight(["boot", "show", `--state-dir=${second.state}`]);
    await drawn.drained;
    assert.match(drawn.output(), /^ {2}weights +\|/m);
    assert.match(drawn.output(), /weights target tp0\/1 .*: loaded; 7 tensors/);
  });
});
