// SPDX-License-Identifier: Apache-2.0
// Every attack by name, against real processes: a coordinator, a hostile peer and a replica. An attack
// is refused when its code is in the record, nothing of it lies in the cache, no receipt or staging is
// left, and the engine started all the same.

import { type ChildProcess, spawn } from "node:child_process";
import path from "node:path";
import { startTestCoordinator } from "../support/relight.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";
import { makeKeys, policyFor } from "./forge.ts";
import type { HostileSource } from "./plan.ts";
import { revokedArtifact, statementAttacks } from "./statements.ts";
import { canary, stateAttacks } from "./states.ts";
import { judge, makeTarget, type Target } from "./target.ts";

export interface Outcome {
  readonly name: string;
  /** Null: refused as it must be. Else what went wrong. */
  readonly accepted: string | null;
}

/** The agent's memory under all attacks at once; each connection has 5 MiB of buffer. */
const peakMiBMax = 1_024;

/** What an attack needs: a fresh target, and a hostile peer that is listed. */
export interface Arena {
  target(name: string): Target;
  /** Resolves when the coordinator lists every source. */
  lists(sources: readonly HostileSource[]): Promise<void>;
}

export interface Result {
  readonly outcomes: readonly Outcome[];
  /** Null: it got through, as it must. */
  readonly canary: string | null;
}

/** Histories played at the same time: each has a target of its own. */
const atOnce = 3;

/**
 * @param options.isQuick those that one start meets, and a few histories
 * @param options.onOutcome called as each is known
 */
export async function runAttacks({
  isQuick,
  onOutcome,
}: {
  readonly isQuick: boolean;
  readonly onOutcome: (outcome: Outcome) => void;
}): Promise<Result> {
  using folder = temporaryFolder();
  await using coordinator = await startTestCoordinator(folder.path("store"));
  const peers: ChildProcess[] = [];
  const outcomes: Outcome[] = [];
  let count = 0;
  const arena: Arena = {
    target: (name) => makeTarget(folder.path(name), coordinator.address),
    lists: async (sources) => {
      const plan = `plan-${count++}.json`;
      folder.write(plan, JSON.stringify({ coordinator: coordinator.address, sources }));
      peers.push(await startPeer(folder.path(plan)));
    },
  };
  const note = (name: string, accepted: string | null) => {
    outcomes.push({ name, accepted });
    onOutcome({ name, accepted });
  };
  try {
    await attackAllAtOnce(arena, note);
    const left = stateAttacks.filter((attack) => !isQuick || attack.isQuick === true);
    const play = async () => {
      for (let attack = left.shift(); attack !== undefined; attack = left.shift())
        note(attack.name, await attack.play(arena).catch((error: unknown) => String(error)));
    };
    await Promise.all(Array.from({ length: atOnce }, play));
    return { outcomes, canary: await canary(arena) };
  } finally {
    for (const peer of peers) peer.kill("SIGKILL");
  }
}

async function attackAllAtOnce(
  arena: Arena,
  note: (name: string, accepted: string | null) => void,
): Promise<void> {
  const keys = makeKeys();
  const revoked = revokedArtifact(keys);
  const attacks = [...statementAttacks(keys), revoked];
  const target = arena.target("all");
  const artifacts = revoked.sources.map(({ artifactId }) => artifactId);
  const policy = policyFor(keys);
  target.hands(
    {
      ...policy,
      revoked: { ...policy.revoked, artifacts: artifacts as typeof policy.revoked.artifacts },
    },
    [keys.root],
  );
  await arena.lists(attacks.flatMap(({ sources }) => sources));
  const start = await target.start(attacks.map(({ name }) => name));
  for (const attack of attacks) note(attack.name, judge(attack, start, target));
  const isBounded = start.peakMiB < peakMiBMax;
  note("memory-of-all-at-once", isBounded ? null : `the agent took ${start.peakMiB} MiB`);
}

async function startPeer(plan: string): Promise<ChildProcess> {
  const script = path.join(import.meta.dirname, "hostile-peer.ts");
  const peer = spawn(process.execPath, [script, plan], { stdio: ["ignore", "pipe", "inherit"] });
  await new Promise<void>((resolve, reject) => {
    peer.stdout.setEncoding("utf8").on("data", (text: string) => {
      if (text.includes("listed")) resolve();
    });
    peer.once("exit", (code) => reject(new Error(`The hostile peer ended (${code})`)));
  });
  return peer;
}
