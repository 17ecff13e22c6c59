// SPDX-License-Identifier: Apache-2.0
// An operation on a group: what was asked, once, by an absolute target; and how far it is. Kept in the
// group's record, so that it outlives the coordinator. The same id and body is the same operation.

import type { Seat } from "./view.ts";

export type OperationKind =
  /** As many ranks as `ranks` says. */
  | "scale"
  /** Without the ranks in `remove`. */
  | "remove"
  /** Back to the ranks asked for last, and every expert owned again. */
  | "recover";

export interface OperationRequest {
  readonly operationId: string;
  readonly kind: OperationKind;
  /** For `scale`; 0 otherwise. */
  readonly ranks: number;
  /** Slots, for `remove`. */
  readonly remove: readonly number[];
  /** The epoch that the caller has seen; null: any. */
  readonly expectedEpoch: number | null;
  /** Before the commit only: past it the operation ends whatever that takes. */
  readonly timeoutMs: number;
  /** The caller vouches that the processes in `remove` have ended. */
  readonly confirmsDeath: boolean;
}

/** `planned` waits for ranks to come; after `committed` there is no way back, only forward. */
export const operationPhases = [
  "planned",
  "staging",
  "flipping",
  "committed",
  "done",
  "aborting",
  "aborted",
] as const;
export type OperationPhase = (typeof operationPhases)[number];

export interface Operation {
  readonly request: OperationRequest;
  /** `automatic` ones the controller opened itself, for a death, a newcomer or a rank that wants to go. */
  readonly by: "operator" | "automatic";
  readonly phase: OperationPhase;
  /** When each phase began, Unix milliseconds. */
  readonly phases: readonly { readonly phase: OperationPhase; readonly atMs: number }[];
  readonly ranksBefore: readonly number[];
  readonly joined: readonly Seat[];
  readonly removed: readonly Seat[];
  /** Copies of experts that were moved. */
  readonly movedExperts: number;
  /** The epoch that its commit began; null before. */
  readonly epoch: number | null;
  readonly error: { readonly code: string; readonly message: string } | null;
}

export const operationLimits = {
  idLengthMax: 128,
  timeoutMsMin: 100,
  timeoutMsMax: 3_600_000,
  timeoutMsDefault: 300_000,
  /** Ended operations whose ids are still known. */
  finishedMax: 64,
};

export function isBeforeCommit({ phase }: Operation): boolean {
  return phase === "planned" || phase === "staging" || phase === "flipping";
}

export function enter(operation: Operation, phase: OperationPhase, atMs: number): Operation {
  if (operation.phase === phase) return operation;
  return { ...operation, phase, phases: [...operation.phases, { phase, atMs }].slice(-phasesMax) };
}

/** An operation that starts over again and again keeps its latest phases. */
const phasesMax = 64;
