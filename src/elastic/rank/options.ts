// SPDX-License-Identifier: Apache-2.0
// What a rank brings to its group, what it hears of it, and what a step was: the types around group.ts.

import type { RelightError } from "../../errors.ts";
import type { Clock } from "../../platform/clock.ts";
import type { JoinRequest, NeededExpert, OpenMembership } from "../session.ts";
import type { Occupant, Seat } from "../view.ts";
import type { RankDevice, WindowExchange } from "./device.ts";

export interface EpGroupLimits {
  /** For the seat, from asking to getting it. */
  readonly seatMsMax: number;
  /** For one window, from asking its owner to its mapping. */
  readonly connectMsMax: number;
  /** For one run of commands; longer than the kernels' own deadlines together. */
  readonly stepMsMax: number;
  /** How often progress is told, at most. */
  readonly progressMs: number;
  /** How often it is told at least, also by an idle rank: silence is taken for death. */
  readonly beatMs: number;
}

/** What happens to the group, in the order in which it does. */
export type GroupEvent =
  | { readonly type: "seated"; readonly seat: Seat }
  | { readonly type: "mapped"; readonly seat: Seat; readonly ms: number }
  | { readonly type: "unmapped"; readonly seat: Seat }
  | { readonly type: "prepared"; readonly experts: number; readonly ms: number }
  /** From `atStep` on these take part, or do not; before it nothing changes. */
  | {
      readonly type: "flip";
      readonly atStep: number;
      readonly joined: readonly Seat[];
      readonly left: readonly Seat[];
    }
  /** The change is behind everybody. */
  | { readonly type: "settled"; readonly epoch: number }
  | { readonly type: "died"; readonly seats: readonly Seat[]; readonly epoch: number }
  /** Everything from this step on is to be done again by everybody; null: no step was lost. */
  | { readonly type: "replay"; readonly firstFaultyStep: number | null }
  /** The group goes on without this rank; `isLeave`: as it was asked to. */
  | { readonly type: "ended"; readonly isLeave: boolean; readonly why: string }
  /** Something that will be tried again or judged by others. */
  | { readonly type: "failed"; readonly what: string; readonly error: RelightError };

export interface EpGroupOptions {
  readonly open: OpenMembership;
  readonly config: JoinRequest["config"];
  readonly occupant: Omit<Occupant, "address">;
  readonly wantedSlot: number | null;
  readonly windows: WindowExchange;
  /** Takes the memory of a rank in this seat. */
  readonly openDevice: (seat: Seat) => Promise<RankDevice>;
  /** Puts experts where the plan wants them; those in use stay. */
  readonly loadExperts: (experts: readonly NeededExpert[], signal: AbortSignal) => Promise<void>;
  readonly onEvent: (event: GroupEvent) => void;
  readonly limits: EpGroupLimits;
  readonly clock: Clock;
}

export interface StepOutcome {
  /** The first and the last step of the run. */
  readonly first: number;
  readonly last: number;
  /** Everybody who should have taken part did, to the end. */
  readonly isGood: boolean;
  /** Slots that were missing. */
  readonly lost: readonly number[];
  /** Experts that nobody holds: choices of them were left out. */
  readonly missingExperts: readonly number[];
}
