// SPDX-License-Identifier: Apache-2.0
// What it is worth that caches arrive while an engine imports, builds its model and takes its weights: the
// time from start to healthy under `relight run --weights`, against the same start that installs its caches
// first and takes its weights through the node's agent. Real processes, the fake GPU; the engine's imports
// are a sleep of two seconds.

import fs from "node:fs";
import path from "node:path";
import { relight, startTestCoordinator } from "../test/support/relight.ts";
import { temporaryFolder } from "../test/support/temporary-folder.ts";
import { bootOf, startWeightsReplica } from "../test/support/weights-replica.ts";
import type { Emit } from "./main.ts";

const rounds = 5;
const importSeconds = 2;
const fileCount = 10_000;
const fileBytes = 8_192;

export async function run(emit: Emit): Promise<void> {
  using folder = temporaryFolder();
  await using coordinator = await startTestCoordinator(folder.path("store"));
  const at = { coordinator: coordinator.address };
  fillCache(folder.path("source/cache"));
  await using source = await startWeightsReplica(folder, "source", at);
  await source.printed(/published jit/, 120_000);
  const socket = folder.path("agent.sock");
  await using agent = relight([
    "agent",
    "--weights",
    `--weights-pretend-gpu=${folder.path("gpu")}`,
    `--socket=${socket}`,
    `--coordinator-address=${coordinator.address}`,
    `--state-dir=${folder.path("agent/state")}`,
    `--trust-dir=${folder.path("trust")}`,
    "--families=none",
  ]);
  await agent.printed(/engines hand over weights at/);
  const environment = { ENGINE_IMPORT_S: String(importSeconds) };
  const healthy: Record<"together" | "after", number[]> = { together: [], after: [] };
  for (let round = 0; round < rounds; round += 1) {
    for (const [how, over] of [
      [
        "after",
        { isHandingOver: false, environment: { ...environment, RELIGHT_AGENT_SOCKET: socket } },
      ],
      ["together", { environment }],
    ] as const) {
      await using replica = await startWeightsReplica(folder, `${how}-${round}`, {
        ...at,
        ...over,
      });
      await replica.printed(/engine healthy/, 120_000);
      const boot = await bootOf(replica);
      if (boot.caches[0]?.state !== "installed") throw new Error(replica.output());
      healthy[how].push(boot.healthyMs ?? 0);
    }
  }
  const [after, together] = [median(healthy.after), median(healthy.together)];
  emit({ name: "weights_boot.rounds", value: rounds, unit: "rounds" });
  emit({
    name: "weights_boot.healthy.vs_caches_first",
    value: together,
    unit: "ms",
    baseline: after,
    ratio: after / together,
  });
  for (const how of ["together", "after"] as const) {
    emit({ name: `weights_boot.${how}.fastest`, value: Math.min(...healthy[how]), unit: "ms" });
    emit({ name: `weights_boot.${how}.slowest`, value: Math.max(...healthy[how]), unit: "ms" });
  }
}

function fillCache(root: string): void {
  const bytes = Buffer.alloc(fileBytes);
  for (let index = 0; index < fileCount; index += 1) {
    const folder = path.join(root, `${index % 256}`);
    fs.mkdirSync(folder, { recursive: true });
    bytes.writeUInt32LE(index);
    fs.writeFileSync(path.join(folder, `kernel-${index}.bin`), bytes);
  }
}

function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;
}
