// SPDX-License-Identifier: Apache-2.0
// A program: a rank without a GPU. It speaks membership through its agent, and its window is a file into
// which it writes the step it is at and whom it takes for members; a step is good when every member's
// window says the same step. Prints one JSON line whenever something changes.
// Usage: ep-rank-process.ts OPTIONS, as JSON of EpRankOptions

import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openAgentMembership } from "../../src/agent/ep-session.ts";
import type { Command, MembershipSession, Report } from "../../src/elastic/session.ts";
import type { GroupConfig, Seat, View } from "../../src/elastic/view.ts";
import { asRelightError } from "../../src/errors.ts";
import { bootId } from "../../src/platform/process.ts";

export interface EpRankOptions {
  readonly socketPath: string;
  readonly memberId: string;
  readonly config: GroupConfig;
  /** Where windows lie. */
  readonly folder: string;
  /** How long it takes over a command, in milliseconds. */
  readonly slowMs: Partial<Record<Command["type"], number>>;
  /** A peer is given up after this. */
  readonly waitMs: number;
}

export type EpRankLine =
  | { readonly type: "seat"; readonly seat: Seat }
  /** From `step` on steps are good with these. */
  | { readonly type: "members"; readonly step: number; readonly members: string }
  | { readonly type: "faulty"; readonly step: number }
  | { readonly type: "masked" | "released" | "evicted" }
  | { readonly type: "refused"; readonly code: string };

interface Peer {
  readonly seat: Seat;
  readonly file: string;
  onAt: number;
  offAt: number;
}

const options: EpRankOptions = JSON.parse(process.argv[2] ?? "");
const own = join(options.folder, `${options.memberId}.window`);
writeFileSync(own, "0 ");
const address = own;
const session: MembershipSession = await openAgentMembership(
  options.socketPath,
  {
    config: options.config,
    occupant: {
      memberId: options.memberId,
      process: { nodeId: "any", bootId: bootId(), pid: process.pid, startTicks: 0 },
      address,
      owner: null,
    },
    wantedSlot: null,
  },
  new AbortController().signal,
);
const peers = new Map<number, Peer>();
const windows = new Map<number, string>();
const suspects = new Set<string>();
let armed: Extract<Command, { type: "arm" }> | null = null;
let gate = Number.POSITIVE_INFINITY;
let launched = 0;
let firstFaulty: number | null = null;
let said = "";
let isOver = false;

void runSteps();
try {
  for await (const command of session.commands) {
    await sleep(options.slowMs[command.type] ?? 0);
    const answer = carryOut(command);
    if (answer !== null) session.report(answer);
  }
} catch (error) {
  isOver = true;
  say({ type: "refused", code: asRelightError(error).code });
}
// The agent takes the last word in; then this process has nothing to do.
await sleep(200);
await session.close();
process.exit(0);

function carryOut(command: Command): Report | null {
  switch (command.type) {
    case "seat":
      say({ type: "seat", seat: command.seat });
      takeSeat(command.view);
      return null;
    case "map":
      windows.set(command.seat.slot, command.occupant.address);
      readFileSync(command.occupant.address);
      return { type: "mapped", seat: command.seat };
    case "unmap":
      windows.delete(command.seat.slot);
      drop(command.seat);
      return { type: "unmapped", seat: command.seat };
    case "prepare":
      return { type: "ready", number: command.number };
    case "arm":
      return arm(command);
    case "commit":
      armed = null;
      gate = Number.POSITIVE_INFINITY;
      return null;
    case "disarm":
      if (armed?.number === command.number) disarm();
      return null;
    case "mask": {
      for (const seat of command.seats) drop(seat);
      say({ type: "masked" });
      const answer = {
        type: "masked",
        epoch: command.epoch,
        firstFaultyStep: firstFaulty,
      } as const;
      firstFaulty = null;
      return answer;
    }
    case "release":
    case "evicted":
      isOver = true;
      peers.clear();
      say({ type: command.type === "release" ? "released" : "evicted" });
      return { type: "quiesced" };
    case "replay":
    case "settled":
      return null;
  }
}

function takeSeat(view: View): void {
  for (const slot of view.slots) {
    if (slot.onAtStep === null || slot.state === "DEAD" || slot.occupant === null) continue;
    const seat = { slot: slot.slot, incarnation: slot.incarnation };
    const offAt = slot.offAtStep ?? Number.POSITIVE_INFINITY;
    peers.set(slot.slot, { seat, file: slot.occupant.address, onAt: slot.onAtStep, offAt });
  }
}

function arm(command: Extract<Command, { type: "arm" }>): Report {
  disarm();
  const { number, atStep, on, off } = command;
  const isJoining = on.some(({ slot }) => slot === session.seat?.slot);
  if (isJoining) {
    launched = atStep - 1;
    if (session.view !== null) takeSeat(session.view);
  } else if (launched >= atStep) return { type: "refused", number, launchedStep: launched };
  for (const seat of on) {
    const file = seat.slot === session.seat?.slot ? own : (windows.get(seat.slot) ?? "");
    peers.set(seat.slot, { seat, file, onAt: atStep, offAt: Number.POSITIVE_INFINITY });
  }
  for (const { slot } of off) {
    const peer = peers.get(slot);
    if (peer !== undefined) peer.offAt = atStep;
  }
  armed = command;
  gate = atStep;
  return { type: "armed", number };
}

function disarm(): void {
  if (armed === null) return;
  for (const seat of armed.on) drop(seat);
  for (const { slot } of armed.off) {
    const peer = peers.get(slot);
    if (peer !== undefined) peer.offAt = Number.POSITIVE_INFINITY;
  }
  armed = null;
  gate = Number.POSITIVE_INFINITY;
}

function drop({ slot, incarnation }: Seat): void {
  if (peers.get(slot)?.seat.incarnation === incarnation) peers.delete(slot);
  suspects.delete(`${slot}/${incarnation}`);
}

async function runSteps(): Promise<void> {
  while (!isOver) {
    await sleep(5);
    const step = launched + 1;
    const seat = session.seat;
    const mine = seat === null ? undefined : peers.get(seat.slot);
    if (mine === undefined || step < mine.onAt || step >= mine.offAt || step >= gate) continue;
    launched = step;
    const members = membersAt(step);
    writeWhole(`${step} ${members.map(({ seat: one }) => name(one)).join(",")}`);
    const isGood = await exchange(step, members);
    if (isOver) return;
    if (isGood) sayMembers(step, members);
    else {
      firstFaulty ??= step;
      say({ type: "faulty", step });
    }
    session.report({ type: "progress", launchedStep: launched, completedStep: step });
  }
}

function membersAt(step: number): Peer[] {
  return [...peers.values()]
    .filter(({ onAt, offAt, seat }) => onAt <= step && step < offAt && !suspects.has(name(seat)))
    .sort((a, b) => a.seat.slot - b.seat.slot);
}

async function exchange(step: number, members: readonly Peer[]): Promise<boolean> {
  const untilMs = performance.now() + options.waitMs;
  let isGood = true;
  for (const peer of members) {
    for (;;) {
      if (isOver || !peers.has(peer.seat.slot)) return false;
      if (hasStep(peer.file, step)) break;
      if (performance.now() > untilMs) {
        isGood = false;
        suspects.add(name(peer.seat));
        session.report({ type: "suspect", seat: peer.seat, step });
        break;
      }
      await sleep(1);
    }
  }
  return isGood;
}

function hasStep(file: string, step: number): boolean {
  return Number(readFileSync(file, "utf8").split(" ")[0]) >= step;
}

/** A reader sees the old line or the new one. */
function writeWhole(text: string): void {
  writeFileSync(`${own}.new`, text);
  renameSync(`${own}.new`, own);
}

function sayMembers(step: number, members: readonly Peer[]): void {
  const text = members.map(({ seat }) => name(seat)).join(" ");
  if (text === said) return;
  said = text;
  say({ type: "members", step, members: text });
}

function name({ slot, incarnation }: Seat): string {
  return `${slot}/${incarnation}`;
}

function say(line: EpRankLine): void {
  console.log(JSON.stringify(line));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
