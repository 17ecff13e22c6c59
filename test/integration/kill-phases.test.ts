// SPDX-License-Identifier: Apache-2.0
// kill -9 of coordinator, source and target, each in every phase of a transfer that crosses the network. A
// proxy holds the phase's first bytes, so that the moment is certain. install-steps.test.ts does the same
// for every step on the target's disk.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, test } from "node:test";
import { type HoldingProxy, holdingProxy } from "../support/holding-proxy.ts";
import {
  freePort,
  type RelightProcess,
  relight,
  startTestCoordinator,
} from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";
import { visibleFiles } from "../support/visible-files.ts";

const filesCount = 20;
const phases = {
  discover: /./s,
  manifest: /GET \/v1\/artifacts\/\w+\/statement/,
  pieces: /GET \/v1\/artifacts\/\w+\/pieces/,
} as const;
type Phase = keyof typeof phases;

interface Fleet extends AsyncDisposable {
  readonly folder: TemporaryFolder;
  readonly coordinator: RelightProcess;
  readonly source: RelightProcess;
  /** Starts a target, and resolves while `phase` is held; `go` lets it go on. */
  hold(phase: Phase): Promise<{ target: RelightProcess; go: () => void }>;
  fetch(): RelightProcess;
  /** Of the target's cache, without Relight's own folder. */
  visible(): string[];
}

async function startFleet(): Promise<Fleet> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.adopt(temporaryFolder(), (one) => one[Symbol.dispose]());
  for (let index = 0; index < filesCount; index++)
    folder.write(`source/k${index}/kernel.bin`, randomBytes(5_000));
  const coordinator = stack.use(await startTestCoordinator(folder.path("store")));
  const [coordinatorPort, sourcePort] = [
    Number(coordinator.address.split(":")[1]),
    await freePort(),
  ];
  const toCoordinator = stack.use(await holdingProxy(() => coordinatorPort));
  const toSource = stack.use(await holdingProxy(() => sourcePort));
  const flags = (name: string, port: number) => [
    `--coordinator-address=127.0.0.1:${port}`,
    `--state-dir=${folder.path(`${name}-state`)}`,
    `--trust-dir=${folder.path("trust")}`,
    "--model=m",
    "--families=none",
    `--cache=x=${folder.path(name)}`,
  ];
  const source = stack.use(
    relight([
      "artifact",
      "publish",
      "--settle=0s",
      `--agent-listen=127.0.0.1:${sourcePort}`,
      `--agent-advertise=http://127.0.0.1:${toSource.port}`,
      ...flags("source", coordinatorPort),
    ]),
  );
  await source.printed(/published x/);
  const running = stack.move();
  const fetch = () =>
    running.use(relight(["artifact", "fetch", "--json", ...flags("target", toCoordinator.port)]));
  return {
    folder,
    coordinator,
    source,
    hold: async (phase) => {
      const proxy: HoldingProxy = phase === "discover" ? toCoordinator : toSource;
      const held = proxy.held(phases[phase]);
      const target = fetch();
      await held;
      return { target, go: proxy.release };
    },
    fetch,
    visible: () => visibleFiles(folder.path("target")),
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

async function ended(target: RelightProcess): Promise<{ state: string; code: string | null }> {
  await target.exited;
  await target.drained;
  const line = target
    .output()
    .split("\n")
    .find((one) => one.startsWith('{"caches"'));
  return JSON.parse(line ?? "null").caches[0];
}

describe("kill -9", () => {
  for (const phase of ["discover", "manifest", "pieces"] as const) {
    test(`of the source during ${phase}: the target is cold with a code, and shows nothing`, async () => {
      await using fleet = await startFleet();
      const { target, go } = await fleet.hold(phase);
      fleet.source.child.kill("SIGKILL");
      await fleet.source.exited;
      go();
      const { state, code } = await ended(target);
      assert.equal(state, "cold");
      assert.match(code ?? "", /^(source_unreachable|source_stalled|sources_exhausted|no_source)$/);
      assert.deepEqual(fleet.visible(), []);
    });

    test(`of the coordinator during ${phase}: ${phase === "discover" ? "the target is cold with a code" : "the transfer ends well"}`, async () => {
      await using fleet = await startFleet();
      const { target, go } = await fleet.hold(phase);
      fleet.coordinator.child.kill("SIGKILL");
      await fleet.coordinator.exited;
      go();
      const { state, code } = await ended(target);
      if (phase === "discover") {
        assert.deepEqual([state, code], ["cold", "coordinator_unreachable"]);
        assert.deepEqual(fleet.visible(), []);
      } else {
        assert.deepEqual([state, code], ["installed", null]);
        assert.equal(fleet.visible().length, filesCount);
      }
    });
  }

  test("of the target during each phase: nothing is visible, and the next start is warm", async () => {
    await using fleet = await startFleet();
    for (const phase of ["discover", "manifest", "pieces"] as const) {
      const { target, go } = await fleet.hold(phase);
      target.child.kill("SIGKILL");
      await target.exited;
      go();
      assert.deepEqual(fleet.visible(), [], phase);
    }
    assert.deepEqual(await ended(fleet.fetch()).then(({ state }) => state), "installed");
    assert.equal(fleet.visible().length, filesCount);
  });
});
