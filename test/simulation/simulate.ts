// SPDX-License-Identifier: Apache-2.0
// The two plays: a fleet that suffers faults and then has to converge, and a fleet that starts against
// one warm source and is only timed. Both are decided by their options alone.

import { KiB, MiB } from "../../src/core/units.ts";
import { type FaultKind, pickFaults, scheduleFaults } from "./faults.ts";
import { type Defect, Fleet, type FleetOptions } from "./fleet.ts";

export interface SwarmOptions {
  readonly seed: number;
  readonly replicas: number;
  readonly isRelaying: boolean;
  readonly defect?: Defect;
}

export interface SwarmResult {
  readonly violations: readonly string[];
  readonly faults: readonly FaultKind[];
  /** How boots ended before the faults stopped and after. */
  readonly outcomes: Readonly<Record<string, number>>;
  readonly looks: Readonly<Record<string, number>>;
  readonly virtualMs: number;
  readonly events: number;
}

const faultsMs = 40_000;
/** Longer than the marker of a failed attempt lives. */
const settleMs = 40_000;
const startSpreadMs = 5_000;
const freshCount = 3;

/** 46 MiB as a compile cache has them: many small files and a few large ones. */
const swarmSizes = [
  ...Array.from({ length: 120 }, (_, index) => ((index * 7_919) % 300) * KiB),
  0,
  9 * MiB + 17,
  4 * MiB,
  11 * MiB,
];

/** Faults for a while, then none, and everybody has to end warm. */
export async function playSwarm(options: SwarmOptions): Promise<SwarmResult> {
  const fleet = new Fleet({
    ...options,
    fileSizes: swarmSizes,
    bytesPerMs: 10 * MiB * 0.001,
    readersMax: 1 + (options.seed % 8),
  });
  const { timeline, chance, checkers } = fleet;
  await fleet.open();
  const picked = pickFaults(fleet);
  scheduleFaults(fleet, picked, faultsMs);
  for (const replica of fleet.replicas) {
    timeline.after(chance.between(0, startSpreadMs), () => replica.start());
  }
  await timeline.run(timeline.nowMs + faultsMs + 1, () => false);
  await endBoots(fleet, "after the faults");
  await timeline.run(timeline.nowMs + settleMs, () => false);
  await checkOffers(fleet);
  await converge(fleet, picked);
  await close(fleet);
  return {
    violations: checkers.violations,
    faults: [...picked],
    outcomes: countBy(checkers.boots.map(({ state, code }) => `${state}${code ? `:${code}` : ""}`)),
    looks: checkers.looks,
    virtualMs: timeline.nowMs,
    events: timeline.events,
  };
}

async function endBoots(fleet: Fleet, when: string): Promise<void> {
  const { timeline, checkers } = fleet;
  const untilMs = timeline.nowMs + 70_000;
  if (await timeline.run(untilMs, () => !fleet.isBooting)) return;
  for (const { name, running } of fleet.replicas) {
    if (running?.isBooting !== false) checkers.violate(`${name} does not end its boot ${when}`);
  }
}

/** Whoever is cold starts again, some new ones start for the first time: all of them must be warm. */
async function converge(fleet: Fleet, picked: ReadonlySet<FaultKind>): Promise<void> {
  const { timeline, checkers, replicas, chance } = fleet;
  for (const replica of replicas.filter(({ isWarm }) => !isWarm)) {
    replica.kill();
    timeline.after(chance.between(1, 2_000), () => replica.start());
  }
  for (let count = 0; count < freshCount; count++) {
    const fresh = fleet.addReplica();
    timeline.after(chance.between(1, 2_000), () => fresh.start());
  }
  const before = checkers.boots.length;
  await endBoots(fleet, "though nothing is wrong any more");
  for (const { node, state, code } of checkers.boots.slice(before)) {
    // Without relaying one source can not serve everybody within the budget, and nobody claims that.
    // A marker that was written while the clock stood ahead becomes valid once more, for its 30 s.
    const isExcused =
      (!fleet.isRelaying && code === "deadline_exceeded") ||
      (picked.has("clock") && code === "attempt_failed_recently");
    if (state === "cold" && !isExcused)
      checkers.violate(`${node} is cold (${code}) though nothing is wrong`);
  }
  await timeline.run(timeline.nowMs + 10_000, () => false);
  await checkOffers(fleet);
}

/** What is offered now is what is served now, and everybody who could give is offered. */
async function checkOffers({ coordinator, checkers, origin, replicas, manifest }: Fleet) {
  const { registry } = coordinator;
  if (registry === null) return checkers.violate("the coordinator is not back");
  const stop = new AbortController().signal;
  const sourceIds = new Set<string>();
  for await (const listed of registry.listAll(stop)) {
    for (const { head } of listed) sourceIds.add(head.sourceId);
  }
  const offered = new Set<string>();
  for (const sourceId of sourceIds) {
    for await (const heads of registry.offers(sourceId, stop)) {
      for (const { workerId } of heads) offered.add(workerId);
    }
  }
  for (const { running, name } of [origin, ...replicas]) {
    if (running === null) continue;
    const serves = running.server.offers.has(manifest.artifactId);
    if (serves !== offered.has(running.workerId)) {
      checkers.violate(`${name} ${serves ? "serves and is not offered" : "is offered in vain"}`);
    }
    offered.delete(running.workerId);
  }
  for (const workerId of offered) checkers.violate(`${workerId} is offered and does not exist`);
}

/** Everybody says goodbye; nothing may be left. */
async function close({ timeline, checkers, origin, replicas, bytePath, coordinator }: Fleet) {
  const all = [origin, ...replicas];
  const servers = all.flatMap(({ running }) => running?.server ?? []);
  const fetchers = all.flatMap(({ running }) => running?.fetcher ?? []);
  let isStopped = false;
  void Promise.all(all.map((replica) => replica.stop())).then(() => {
    isStopped = true;
  });
  if (!(await timeline.run(timeline.nowMs + 30_000, () => isStopped)))
    checkers.violate("not everybody could say goodbye");
  // Longer than a source keeps a place for a reader that it can not hear.
  await timeline.run(timeline.nowMs + 30_000, () => false);
  const left = {
    flows: bytePath.network.flowCount,
    readers: servers.reduce((sum, server) => sum + server.stats().readers, 0),
    requests: fetchers.reduce((sum, { underWay }) => sum + underWay, 0),
    sessions: coordinator.registry?.sessionCount ?? 0,
    stagings: checkers.stagings,
  };
  for (const [what, count] of Object.entries(left)) {
    if (count !== 0) checkers.violate(`${count} ${what} are left at the end`);
  }
}

export interface FanOutResult {
  /** From the first start until the last replica is warm. */
  readonly seconds: number;
  readonly warm: number;
  readonly violations: readonly string[];
  readonly bytesMoved: number;
  readonly events: number;
}

/** 256 MiB: 192 MiB in 4 MiB files, the rest in small ones. */
const fanOutSizes = [
  ...Array.from({ length: 48 }, () => 4 * MiB),
  ...Array.from({ length: 640 }, (_, index) => (1 + ((index * 7_919) % 204)) * KiB),
];
/** 10 Gb/s. */
const fanOutBytesPerMs = 1_250_000;
const dayMs = 24 * 3_600_000;

/** All start at once against one warm source, nothing goes wrong, nobody gives up. */
export async function playFanOut(
  options: Pick<FleetOptions, "seed" | "replicas" | "isRelaying">,
): Promise<FanOutResult> {
  const fleet = new Fleet({
    ...options,
    fileSizes: fanOutSizes,
    bytesPerMs: fanOutBytesPerMs,
    readersMax: 8,
    budgets: { budgetMs: dayMs, discoverMsMax: 5_000, fetchMsMax: dayMs },
  });
  const { timeline, checkers, bytePath } = fleet;
  await fleet.open();
  const startedMs = timeline.nowMs;
  for (const replica of fleet.replicas) replica.start();
  await timeline.run(startedMs + dayMs, () => !fleet.isBooting);
  const warm = checkers.boots.filter(({ state, node }) => state !== "cold" && node !== "origin");
  const lastMs = Math.max(startedMs, ...warm.map(({ endedMs }) => endedMs));
  return {
    seconds: (lastMs - startedMs) / 1_000,
    warm: warm.length,
    violations: checkers.violations,
    bytesMoved: bytePath.network.bytesMoved,
    events: timeline.events,
  };
}

function countBy(words: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const word of words.toSorted()) counts[word] = (counts[word] ?? 0) + 1;
  return counts;
}
