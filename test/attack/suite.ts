// SPDX-License-Identifier: Apache-2.0
// Every attack by name, against real processes: a hostile peer, a hostile coordinator or a hostile client
// on one side, a replica or a coordinator as users start it on the other. An attack on a replica is
// refused when its code is in the record, nothing of it lies in the cache, no receipt or staging is left,
// and the engine started all the same.

import { startTestCoordinator } from "../support/relight.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";
import { attackAsClient } from "./clients.ts";
import { attackByListing, coordinatorAttacks } from "./coordinators.ts";
import { makeKeys, policyFor } from "./forge.ts";
import { type Hostile, startHostile } from "./hostile.ts";
import type { CoordinatorPlan, HostilePlan, HostileSource, Listening, Shown } from "./plan.ts";
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
  /** @param coordinator host:port; the honest one when absent */
  target(name: string, coordinator?: string): Target;
  /** Resolves when the honest coordinator lists every source. @returns what they print from then on */
  lists(sources: readonly HostileSource[]): Promise<() => readonly string[]>;
  /** Sources that nobody lists yet. @returns their endpoints in order */
  serves(sources: readonly HostileSource[], tls?: Shown | null): Promise<readonly string[]>;
  /** A coordinator that does what it is told; the rest it does as an honest one without sources. */
  misleads(plan: Partial<CoordinatorPlan>): Promise<Misleading>;
}

export interface Misleading {
  /** host:port */
  readonly address: string;
  /** Names of the calls that it got. */
  called(): ReadonlySet<string>;
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
  const hostiles: Hostile[] = [];
  const outcomes: Outcome[] = [];
  const start = async (script: string, plan: object): Promise<Hostile & Listening> => {
    const file = `plan-${hostiles.length}.json`;
    folder.write(file, JSON.stringify(plan));
    const hostile = startHostile(script, folder.path(file));
    hostiles.push(hostile);
    return { ...hostile, ...(JSON.parse(await hostile.firstLine) as Listening) };
  };
  const peer = (plan: HostilePlan) => start("hostile-peer", plan);
  const arena: Arena = {
    target: (name, address = coordinator.address) => makeTarget(folder.path(name), address),
    lists: async (sources) =>
      (await peer({ coordinator: coordinator.address, tls: null, sources })).lines,
    serves: async (sources, tls = null) =>
      (await peer({ coordinator: null, tls, sources })).endpoints,
    misleads: async (changes) => {
      const plan: CoordinatorPlan = { ...quiet, ...changes };
      const { endpoints, lines } = await start("hostile-coordinator", plan);
      return {
        address: endpoints[0] ?? "",
        called: () => new Set(lines().map((line) => line.replace("called ", ""))),
      };
    },
  };
  const note = (name: string, accepted: string | null) => {
    outcomes.push({ name, accepted });
    onOutcome({ name, accepted });
  };
  try {
    await attackAllAtOnce(arena, note);
    await attackByListing(arena, note);
    await attackAsClient(folder, { isQuick, note });
    const left = [...stateAttacks, ...coordinatorAttacks].filter(
      (attack) => !isQuick || attack.isQuick === true,
    );
    const play = async () => {
      for (let attack = left.shift(); attack !== undefined; attack = left.shift())
        note(attack.name, await attack.play(arena).catch((error: unknown) => String(error)));
    };
    await Promise.all(Array.from({ length: atOnce }, play));
    return { outcomes, canary: await canary(arena) };
  } finally {
    for (const hostile of hostiles) hostile.stop();
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

const quiet: CoordinatorPlan = {
  tls: null,
  listed: [],
  find: "list",
  policies: [],
  floodBytes: 0,
  enrol: null,
};
