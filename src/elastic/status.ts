// SPDX-License-Identifier: Apache-2.0
// What the coordinator knows of a member: its latest word, whole each time, so that a lost, late or
// repeated one does no harm. Made by member.ts, judged by the controller.

import type { Seat } from "./view.ts";

export interface Suspicion {
  readonly seat: Seat;
  /** The step whose exchange with it failed. */
  readonly step: number;
}

export interface Status {
  readonly memberId: string;
  /** Grows with each status of a member; an older one says nothing. */
  readonly sequence: number;
  readonly seat: Seat | null;
  /** The latest view that this member has acted on; 0 for none. */
  readonly generation: number;
  /** Peers that may be mapped: from the command to map until the answer to unmap. */
  readonly holds: readonly Seat[];
  /** Peers that are mapped for certain. */
  readonly mapped: readonly Seat[];
  /** The latest plan whose experts are all here; 0 for none. */
  readonly ready: number;
  /** The proposal under which it stops before `atStep`; 0 for none. */
  readonly armed: number;
  /** The latest proposal that came too late; 0 for none. */
  readonly refused: number;
  /** The latest epoch whose deaths are masked on the device. */
  readonly maskedEpoch: number;
  /** First steps that did not finish well, by the epoch whose masking ended them; latest few. */
  readonly faulty: readonly { readonly epoch: number; readonly firstFaultyStep: number | null }[];
  readonly launchedStep: number;
  readonly completedStep: number;
  readonly suspects: readonly Suspicion[];
  readonly isLeaving: boolean;
  /** It said that it touches no peer any more. */
  readonly isQuiesced: boolean;
  /** Said by its agent: the process no longer listens. */
  readonly isHungUp: boolean;
  /** Seats of this node whose processes its agent found gone. */
  readonly gone: readonly Seat[];
}

/** Who speaks for a member. What it says of processes counts for its own node's only. */
export interface Speaker {
  readonly nodeId: string;
  /** The SPIFFE id that it proved; null where nobody has to. */
  readonly owner: string | null;
}

/** A member as the coordinator has it in memory; nothing of this outlives the coordinator. */
export interface Heard {
  readonly from: Speaker;
  readonly status: Status;
  readonly heardAtMs: number;
  /** Launched steps a millisecond, between the last two words; 0 when idle. */
  readonly stepsPerMs: number;
}

export function firstStatus(memberId: string): Status {
  return {
    memberId,
    sequence: 0,
    seat: null,
    generation: 0,
    holds: [],
    mapped: [],
    ready: 0,
    armed: 0,
    refused: 0,
    maskedEpoch: 0,
    faulty: [],
    launchedStep: 0,
    completedStep: 0,
    suspects: [],
    isLeaving: false,
    isQuiesced: false,
    isHungUp: false,
    gone: [],
  };
}

/** @returns the same when the word is older than what is known. */
export function hearStatus(
  before: Heard | undefined,
  status: Status,
  { from, nowMs }: { readonly from: Speaker; readonly nowMs: number },
): Heard {
  if (before === undefined) return { from, status, heardAtMs: nowMs, stepsPerMs: 0 };
  if (status.sequence < before.status.sequence) return before;
  // A rank that joins begins at the group's step: that is no speed.
  const isFirst = before.status.launchedStep === 0;
  const steps = isFirst ? 0 : status.launchedStep - before.status.launchedStep;
  const ms = Math.max(1, nowMs - before.heardAtMs);
  // Words that come in one burst say nothing about speed.
  const stepsPerMs =
    ms < burstMs ? Math.max(before.stepsPerMs, steps / burstMs) : Math.max(0, steps) / ms;
  return { from, status, heardAtMs: nowMs, stepsPerMs };
}

const burstMs = 20;
