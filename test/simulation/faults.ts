// SPDX-License-Identifier: Apache-2.0
// What goes wrong in a run. The seed picks which kinds of fault exist in it at all, and how often each
// comes: a fleet that suffers everything at once hides what two faults do to each other.

import type { Fleet } from "./fleet.ts";
import type { Replica } from "./replica.ts";

const kinds = [
  "mail",
  "partition",
  "crash",
  "freeze",
  "flip",
  "store",
  "coordinator",
  "disk",
  "clock",
  "slow",
  "last_percent",
] as const;

export type FaultKind = (typeof kinds)[number];

/** Every second kind, on average. */
export function pickFaults(fleet: Fleet): ReadonlySet<FaultKind> {
  return new Set(kinds.filter(() => fleet.chance.is(0.5)));
}

/** Lets faults happen for this long from now; then all of them are taken away. */
export function scheduleFaults(fleet: Fleet, picked: ReadonlySet<FaultKind>, forMs: number): void {
  const untilMs = fleet.timeline.nowMs + forMs;
  for (const kind of picked) begin[kind](fleet, untilMs);
  fleet.timeline.at(untilMs, () => heal(fleet));
}

const begin: Readonly<Record<FaultKind, (fleet: Fleet, untilMs: number) => void>> = {
  mail: ({ coordinator: { mail }, chance }) => {
    mail.lost = chance.between(0, 0.2);
    mail.late = chance.between(0, 0.3);
    mail.lateMsMax = chance.between(50, 1_500);
    mail.repeated = chance.between(0, 0.2);
  },
  partition: (fleet, untilMs) =>
    every(fleet, { meanMs: 3_000, untilMs }, (replica) => cutOff(fleet, replica)),
  crash: (fleet, untilMs) =>
    every(fleet, { meanMs: 4_000, untilMs }, (replica) => {
      replica.kill();
      fleet.timeline.after(fleet.chance.between(500, 15_000), () => replica.start());
    }),
  freeze: (fleet, untilMs) =>
    every(fleet, { meanMs: 4_000, untilMs }, (replica) => {
      freeze(fleet, replica);
      fleet.timeline.after(fleet.chance.between(200, 15_000), () => thaw(fleet, replica));
    }),
  flip: ({ bytePath, chance }) => {
    bytePath.flips = 10 ** chance.between(-4, -2);
  },
  store: (fleet, untilMs) => {
    const { mood } = fleet.coordinator;
    every(fleet, { meanMs: 5_000, untilMs }, () => {
      mood.failing = fleet.chance.between(0.1, 1);
      mood.slowMs = fleet.chance.between(0, 400);
      fleet.timeline.after(fleet.chance.between(200, 5_000), () => {
        mood.failing = 0;
        mood.slowMs = 0;
      });
    });
  },
  coordinator: (fleet, untilMs) =>
    every(fleet, { meanMs: 10_000, untilMs }, () => {
      fleet.coordinator.kill();
      fleet.timeline.after(fleet.chance.between(100, 6_000), () => fleet.restartCoordinator());
    }),
  disk: ({ replicas, chance }) => {
    for (const { disk } of replicas) disk.isFull = chance.is(0.1);
  },
  clock: (fleet, untilMs) =>
    every(fleet, { meanMs: 2_000, untilMs }, ({ running }) => {
      if (running !== null)
        running.process.wallSkewMs += fleet.chance.between(-7_200_000, 7_200_000);
    }),
  slow: ({ replicas, chance, bytePath }) => {
    for (const { node } of replicas) {
      if (!chance.is(0.15)) continue;
      node.upBytesPerMs /= chance.between(5, 100);
      bytePath.network.reconsider(node);
    }
  },
  last_percent: (fleet, untilMs) => {
    const look = () => {
      if (fleet.timeline.nowMs >= untilMs) return;
      if (fleet.furthestShare() < 0.99) fleet.timeline.after(20, look);
      else fleet.origin.kill();
    };
    look();
  },
};

/** At random times, to a random replica. */
function every(
  fleet: Fleet,
  { meanMs, untilMs }: { meanMs: number; untilMs: number },
  act: (replica: Replica) => void,
): void {
  const { chance, timeline, replicas } = fleet;
  timeline.after(chance.between(0, 2 * meanMs), () => {
    if (timeline.nowMs >= untilMs) return;
    const replica = chance.pick([fleet.origin, ...replicas]);
    if (replica !== undefined) act(replica);
    every(fleet, { meanMs, untilMs }, act);
  });
}

function cutOff(fleet: Fleet, replica: Replica): void {
  const { node } = replica;
  const how = fleet.chance.pick(["isDeaf", "isMute", "isLost", "both"] as const) ?? "both";
  if (how === "both" || how === "isDeaf") node.isDeaf = true;
  if (how === "both" || how === "isMute") node.isMute = true;
  if (how === "isLost") node.isLost = true;
  if (how !== "isDeaf") replica.markLost();
  fleet.bytePath.network.reconsider(node);
  fleet.timeline.after(fleet.chance.between(300, 15_000), () => rejoin(fleet, replica));
}

function rejoin(fleet: Fleet, replica: Replica): void {
  const { node, running } = replica;
  [node.isDeaf, node.isMute, node.isLost] = [false, false, false];
  if (running !== null && !running.process.isFrozen) fleet.lostMs.delete(running.workerId);
  fleet.bytePath.network.reconsider(node);
}

function freeze(fleet: Fleet, replica: Replica): void {
  const { running, node } = replica;
  if (running === null) return;
  running.process.freeze();
  replica.markLost();
  node.isStill = true;
  fleet.bytePath.network.reconsider(node);
}

function thaw(fleet: Fleet, replica: Replica): void {
  const { running, node } = replica;
  node.isStill = false;
  fleet.bytePath.network.reconsider(node);
  if (running === null || !running.process.isFrozen) return;
  if (!node.isMute && !node.isLost) fleet.lostMs.delete(running.workerId);
  running.process.thaw();
}

/** Faults stop: from here on the fleet has to converge. */
function heal(fleet: Fleet): void {
  const { coordinator, bytePath } = fleet;
  Object.assign(coordinator.mail, { lost: 0, late: 0, repeated: 0 });
  Object.assign(coordinator.mood, { failing: 0, slowMs: 0 });
  bytePath.flips = 0;
  fleet.restartCoordinator();
  for (const replica of [fleet.origin, ...fleet.replicas]) {
    replica.disk.isFull = false;
    replica.node.upBytesPerMs = fleet.bytesPerMs;
    rejoin(fleet, replica);
    thaw(fleet, replica);
    replica.start();
  }
}
