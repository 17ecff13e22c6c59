// SPDX-License-Identifier: Apache-2.0
// A group's record: all of it that outlives the coordinator. Changed only by the pure functions of this
// folder, and written with compare-and-set before anybody is told.

import { RelightError } from "../errors.ts";
import type { Operation } from "./operation.ts";
import { emptyPlacement } from "./placement.ts";
import type { Heard } from "./status.ts";
import {
  expertsMax,
  type GroupConfig,
  incarnationMax,
  isSeated,
  isStaying,
  type Occupant,
  type Slot,
  slotsMax,
  type View,
} from "./view.ts";

export interface Group extends View {
  /** The latest plan's, flip's and automatic operation's number. */
  readonly lastNumber: number;
  /** No flip is before this step. */
  readonly lastStep: number;
  /** Ranks that an operator asked for last; 0 for none yet. */
  readonly targetRanks: number;
  readonly operation: Operation | null;
  /** Ended ones, oldest first. */
  readonly finished: readonly Operation[];
  /** When the oldest accusation that stands was first seen, Unix milliseconds; null for none. */
  readonly accusedAtMs: number | null;
  /** When the present flip was proposed, Unix milliseconds; null for none. */
  readonly proposedAtMs: number | null;
}

/** One that asks for a seat. */
export interface Candidate {
  readonly occupant: Occupant;
  readonly wantedSlot: number | null;
  /** When it first asked: earlier ones are let in first. */
  readonly sinceMs: number;
}

/** What only the running coordinator knows; members say it again after a restart. */
export interface Known {
  /** When this coordinator began to listen. */
  readonly sinceMs: number;
  readonly heard: ReadonlyMap<string, Heard>;
  readonly candidates: ReadonlyMap<string, Candidate>;
  /** Tokens an expert lately, summed over ranks; empty: unknown. */
  readonly load: readonly number[];
}

export interface ControllerLimits {
  /** Silence after which a member that somebody waits for is given up, in milliseconds. */
  readonly leaseMs: number;
  /** Time for accusations to come together before a verdict. */
  readonly graceMs: number;
  /** A proposal that is not answered by all within this is taken back. */
  readonly flipMs: number;
  /** How far ahead of a running group a flip is put, so that its commit comes before it. */
  readonly leadMs: number;
}

export const controllerLimits: ControllerLimits = {
  leaseMs: 5_000,
  graceMs: 50,
  flipMs: 1_000,
  leadMs: 10,
};

const faultsMax = 8;
const textMax = 256;

/** @throws RelightError `request_invalid`. */
export function newGroup(config: GroupConfig): Group {
  checkConfig(config);
  return {
    config,
    generation: 0,
    epoch: 0,
    slots: Array.from({ length: config.slotCount }, (_, slot) => emptySlot(slot, 0)),
    placement: emptyPlacement(config.expertCount),
    transition: null,
    committed: null,
    faults: [],
    lastNumber: 0,
    lastStep: 0,
    targetRanks: 0,
    operation: null,
    finished: [],
    accusedAtMs: null,
    proposedAtMs: null,
  };
}

export function emptySlot(slot: number, incarnation: number): Slot {
  return {
    slot,
    state: "EMPTY",
    incarnation,
    occupant: null,
    onAtStep: null,
    offAtStep: null,
    isEndKnown: false,
    ended: null,
    endedGeneration: 0,
  };
}

/** What members are told of the record. */
export function viewOf(group: Group): View {
  const { config, generation, epoch, slots, placement, transition, committed, faults } = group;
  return { config, generation, epoch, slots, placement, transition, committed, faults };
}

/** The generation that the change being decided will have. */
export function nextGeneration(group: Group): number {
  return group.generation + 1;
}

export function withSlot(group: Group, slot: Slot): Group {
  return { ...group, slots: group.slots.map((one) => (one.slot === slot.slot ? slot : one)) };
}

/** The next occupant's: never that of the one before. */
export function nextIncarnation(incarnation: number): number {
  return (incarnation % incarnationMax) + 1;
}

export function stayingSlots(group: View): Slot[] {
  return group.slots.filter(isStaying);
}

export function seatedSlots(group: View): Slot[] {
  return group.slots.filter(isSeated);
}

/** The latest word of whoever sits there: a member sits once, under one incarnation. */
export function heardOf(known: Known, slot: Slot): Heard | undefined {
  return slot.occupant === null ? undefined : known.heard.get(slot.occupant.memberId);
}

export function withFault(
  group: Group,
  fault: Group["faults"][number],
): readonly Group["faults"][number][] {
  return [...group.faults, fault].slice(-faultsMax);
}

/** @throws RelightError `ep_config_differs`. */
export function checkSameConfig(group: Group, config: GroupConfig): void {
  const keys = Object.keys(group.config) as (keyof GroupConfig)[];
  const differing = keys.find((key) => group.config[key] !== config[key]);
  if (differing === undefined) return;
  throw new RelightError(
    "ep_config_differs",
    `Cannot join "${config.group}": ${differing} is ${config[differing]}, the group has ${group.config[differing]}`,
  );
}

/** @throws RelightError `request_invalid`. */
export function checkConfig(config: GroupConfig): void {
  const { group, slotCount, expertCount, localExpertsMax, redundantCount, expertBytes } = config;
  const wrong = [
    /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(group) ? "" : "group is no name",
    isWithin(slotCount, 1, slotsMax) ? "" : `slotCount is ${slotCount}, want 1 to ${slotsMax}`,
    isWithin(expertCount, 1, expertsMax)
      ? ""
      : `expertCount is ${expertCount}, want 1 to ${expertsMax}`,
    isWithin(localExpertsMax, 1, expertsMax)
      ? ""
      : `localExpertsMax is ${localExpertsMax}, want 1 to ${expertsMax}`,
    isWithin(redundantCount, 0, expertsMax * slotsMax)
      ? ""
      : `redundantCount is ${redundantCount}, want 0 or more`,
    isWithin(expertBytes, 0, Number.MAX_SAFE_INTEGER) ? "" : "expertBytes is no size",
    config.shape.length <= textMax ? "" : `shape is longer than ${textMax} characters`,
  ].filter((text) => text !== "");
  if (wrong.length === 0) return;
  throw new RelightError("request_invalid", `Cannot make the group: ${wrong.join("; ")}`);
}

function isWithin(value: number, low: number, high: number): boolean {
  return Number.isSafeInteger(value) && value >= low && value <= high;
}
