// SPDX-License-Identifier: Apache-2.0
// Several replicas under `relight run --weights` on the fake GPU: whom the coordinator sends where, what is
// refused by name, and what a killed source costs.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { freePort, relight, relightJson, startTestCoordinator } from "../support/relight.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";
import {
  askEngine,
  bootOf,
  engineWeights,
  startWeightsReplica,
} from "../support/weights-replica.ts";

describe("live weights in a fleet", { timeout: 120_000, concurrency: true }, () => {
  test("two take the newest values of one that admits one reader; another layout is refused by name; a killed source costs nobody", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const at = { coordinator: coordinator.address };
    const flags = ["--weights-readers-max=1"];
    await using source = await startWeightsReplica(folder, "a", { ...at, flags, salt: "one" });
    await source.printed(/offering weights: .* generation 1/);
    await source.printed(/healthy/);
    await askEngine(source, "update?two");
    await source.printed(/offering weights: .* generation 2/);

    const start = (name: string, engine = ["serving_engine.py"]) =>
      startWeightsReplica(folder, name, { ...at, engine, salt: name });
    await using narrow = await start("narrow", ["serving_engine.py", "8"]);
    await using first = await start("first");
    await using second = await start("second");
    await Promise.all([narrow, first, second].map((replica) => replica.printed(/healthy/)));
    for (const replica of [first, second]) {
      assert.deepEqual((await engineWeights(replica, "two")).holds, [true, true]);
    }
    const refused = await engineWeights(narrow);
    assert.equal(refused.code, "layout_mismatch");
    assert.match(refused.message, /of the nearest, its tensor layout is "[0-9a-f]{12}"/);
    const [record] = (await bootOf(narrow)).weights;
    assert.equal(record?.code, "layout_mismatch");
    assert.notEqual(record?.offered, null, "it offers its own layout all the same");

    source.child.kill("SIGKILL");
    await source.exited;
    await using last = await start("last");
    await last.printed(/healthy/);
    assert.deepEqual((await engineWeights(last, "two")).holds, [true, true]);
    const listed = await relightJson<{ sources: { model: string }[] }>([
      "source",
      "list",
      `--coordinator-address=${coordinator.address}`,
    ]);
    assert.ok(listed.value.sources.some(({ model }) => model === "m"));
    const [, http] = await coordinator.printed(/(http:\S+)/);
    const page = await (await fetch(`${http}/metrics`)).text();
    assert.match(page, /relight_weights_total\{outcome="loaded",code="none"\} 3/);
    assert.match(page, /relight_weights_total\{outcome="cold",code="layout_mismatch"\} 1/);
  });

  test("without a coordinator nothing is known of sources, but REMOTE_INSTANCE_IP names one, read over HTTP", async () => {
    using folder = temporaryFolder();
    const port = await freePort();
    const at = { coordinator: "127.0.0.1:9", engine: ["loader_engine.py", "vllm"] };
    const listen = [`--weights-listen=127.0.0.1:${port}`];
    await using source = await startWeightsReplica(folder, "a", {
      ...at,
      flags: listen,
      salt: "one",
    });
    await source.printed(/healthy/);
    assert.equal((await bootOf(source)).weights[0]?.code, "coordinator_unreachable");
    await using target = await startWeightsReplica(folder, "b", {
      ...at,
      flags: ["--weights-transport=http"],
      salt: "other",
      environment: {
        REMOTE_INSTANCE_IP: "127.0.0.1",
        REMOTE_INSTANCE_SERVER_PORT: String(port),
      },
    });
    await target.printed(/healthy/);
    const weights = await askEngine(target, "weights?one");
    assert.equal(Boolean(weights.holds), true);
    assert.match(target.output(), /warm: weights/);
    const [record] = (await bootOf(target)).weights;
    assert.deepEqual(record?.sources, [`http://127.0.0.1:${port}`]);
    assert.deepEqual(record?.transports, ["http"]);
  });

  test("members of a fleet read from each other over mutual TLS, and a reader may not give", async () => {
    using folder = temporaryFolder();
    const dirs = ["state", "trust"].map((one) => `--${one}-dir=${folder.path(`office/${one}`)}`);
    await relightJson(["trust", "token", ...dirs]);
    const tokenFor = async (role: string) => {
      const made = await relightJson<{ token: string }>([
        "trust",
        "token",
        `--role=${role}`,
        ...dirs,
      ]);
      return made.value.token;
    };
    await using coordinator = relight([
      "coordinator",
      "--listen=127.0.0.1:0",
      "--http-listen=127.0.0.1:0",
      `--store-dir=${folder.path("store")}`,
      ...dirs,
    ]);
    const [, address = ""] = await coordinator.printed(/gRPC on (\S+) behind TLS/);
    const start = async (name: string, role: string) => {
      const flags = [`--join=${await tokenFor(role)}`, "--weights-transport=http"];
      const at = { coordinator: address, isMember: true };
      return await startWeightsReplica(folder, name, { ...at, flags, salt: name });
    };
    await using mirror = await start("mirror", "mirror");
    await mirror.printed(/offering weights/);
    await using target = await start("target", "reader");
    await target.printed(/healthy/);
    assert.deepEqual((await engineWeights(target, "mirror")).holds, [true, true]);
    assert.deepEqual((await bootOf(target)).weights[0]?.transports, ["http"]);
    await target.printed(/role_denied/);
  });
});
