// SPDX-License-Identifier: Apache-2.0
// What everybody in an expert group talks about: its fixed shape, its slots, who owns which expert, and
// the change that is under way. Data only; controller.ts decides about it, member.ts follows it.
//
// Three numbers that must not be mixed up:
//   step        counts dispatches. The kernels' header calls it epoch (RelightEpState.on_at, off_at).
//   epoch       numbers memberships: one for every change of who takes part.
//   generation  numbers changes of the record, so that an older view is known as older.

/** Slots are bits of a 32-bit mask in the kernels. */
export const slotsMax = 32;
export const expertsMax = 512;
/** An incarnation is 8 bits, 1 to 255, and never that of the slot's previous occupant. */
export const incarnationMax = 255;

/** Fixed when the group is made; a member that brings another one is refused. */
export interface GroupConfig {
  readonly group: string;
  /** The most ranks that there can ever be, 1 to 32: buffers are sized by it once. */
  readonly slotCount: number;
  readonly expertCount: number;
  /** Copies of experts that one rank can hold at once, the old and the new ones of a change together. */
  readonly localExpertsMax: number;
  /** Copies beyond one of each expert, for balance and for a death. */
  readonly redundantCount: number;
  readonly expertBytes: number;
  /** Everything else that kernels must agree on (hidden size, top-k, tokens, format): compared as text. */
  readonly shape: string;
  /**
   * `operation`: as many ranks are let in as an operator's operation asks for, while it is open.
   * `automatic`: whoever says hello, up to what an operator asked for last if one did.
   */
  readonly admission: "automatic" | "operation";
}

/**
 * EMPTY: free. STAGED: its windows are being mapped and its experts loaded; masked everywhere.
 * ACTIVE: takes part from `onAtStep` on, and until `offAtStep`. SUSPECT: somebody accuses it, the
 * verdict is pending. DEAD: out for ever; the slot waits until nobody maps it and its occupant's end
 * is known.
 */
export type SlotState = "EMPTY" | "STAGED" | "ACTIVE" | "SUSPECT" | "DEAD";

/** A process as its node knows it: a pid alone comes back. */
export interface ProcessName {
  readonly nodeId: string;
  /** The kernel's id of this boot of the node. */
  readonly bootId: string;
  readonly pid: number;
  /** Clock ticks from the node's boot to the process's start, as /proc says. */
  readonly startTicks: number;
}

/** Who sits in a slot. */
export interface Occupant {
  /** Chosen at random by the process for each time that it joins. */
  readonly memberId: string;
  readonly process: ProcessName;
  /** Where peers get its window: the path of a socket that passes descriptors. */
  readonly address: string;
  /** The SPIFFE id under which it was brought; null where nobody has to prove anything. */
  readonly owner: string | null;
}

/** Why a slot is DEAD. */
export type Ended =
  | "left" // It was asked to go, or asked to, and the group has passed the step.
  | "aborted" // The operation that staged it ended without it.
  | "exited" // Its process is gone.
  | "hung_up" // Its agent lost it.
  | "silent" // Nothing was heard of it while something waited for it.
  | "suspected"; // Peers could not exchange with it.

export interface Slot {
  readonly slot: number;
  readonly state: SlotState;
  /** Of the present or the last occupant; 0 when there never was one. */
  readonly incarnation: number;
  /** Null only when EMPTY. */
  readonly occupant: Occupant | null;
  /** Takes part in steps `onAtStep` <= step; null while STAGED. */
  readonly onAtStep: number | null;
  /** Takes part in steps before this one; null when nothing ends it. */
  readonly offAtStep: number | null;
  /** The occupant's process is gone, or it said itself that it touches no peer any more. */
  readonly isEndKnown: boolean;
  readonly ended: Ended | null;
  /** The generation at which it became DEAD. */
  readonly endedGeneration: number;
}

/** One incarnation of a slot. */
export interface Seat {
  readonly slot: number;
  readonly incarnation: number;
}

/** Where one copy of an expert lies. */
export interface Copy {
  readonly slot: number;
  /** Index among the rank's local experts, below `localExpertsMax`. */
  readonly local: number;
}

/** For each expert its copies, by slot; none: the expert is lost and routes nowhere. */
export type Placement = readonly (readonly Copy[])[];

/** Membership and owners that all take on together when they reach a step. */
export interface Flip {
  /** Of the proposal: a new one for each attempt, so that an answer to another does not count. */
  readonly number: number;
  /** The epoch that begins. */
  readonly epoch: number;
  /** The first step under it. */
  readonly atStep: number;
}

/** A change before its commit. */
export interface Transition {
  /** Of the plan: experts are loaded for this one. */
  readonly number: number;
  readonly joiners: readonly Seat[];
  readonly leavers: readonly Seat[];
  readonly placement: Placement;
  /** Null while windows are mapped and experts loaded. */
  readonly flip: Flip | null;
  /** Steps proposed so far: each is further ahead, so that also a slow rank arms one in time. */
  readonly attempts: number;
}

/** A change after its commit, until every participant has finished the steps before `flip.atStep`. */
export interface Committed {
  readonly number: number;
  /** Of the view that says so: it holds until everybody has acted on that. */
  readonly generation: number;
  readonly flip: Flip;
  readonly leavers: readonly Seat[];
  readonly placement: Placement;
}

/** A membership that ended by a death, and what it cost. */
export interface Fault {
  /** The epoch that the verdict began. */
  readonly epoch: number;
  readonly seat: Seat;
  readonly ended: Ended;
  /** The first step that a survivor could not finish well; null when there was none. */
  readonly firstFaultyStep: number | null;
  /** False until all survivors have said what they lost. */
  readonly isSettled: boolean;
}

/** What a member is told, whole each time: acting on the latest alone is right. */
export interface View {
  readonly config: GroupConfig;
  readonly generation: number;
  readonly epoch: number;
  readonly slots: readonly Slot[];
  readonly placement: Placement;
  readonly transition: Transition | null;
  readonly committed: Committed | null;
  /** The latest few, oldest first. */
  readonly faults: readonly Fault[];
}

export function isSameSeat(a: Seat, b: Seat): boolean {
  return a.slot === b.slot && a.incarnation === b.incarnation;
}

export function seatOf({ slot, incarnation }: Seat): Seat {
  return { slot, incarnation };
}

/** Takes part in steps now or from a committed step on, and nothing ended it. */
export function isMember(slot: Slot): boolean {
  return slot.state === "ACTIVE" || slot.state === "SUSPECT";
}

/** Members that stay: those that no committed change lets go. */
export function isStaying(slot: Slot): boolean {
  return isMember(slot) && slot.offAtStep === null;
}

/** Who has or needs a mapping of peers' windows. */
export function isSeated(slot: Slot): boolean {
  return isMember(slot) || slot.state === "STAGED";
}
