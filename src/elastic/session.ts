// SPDX-License-Identifier: Apache-2.0
// What a rank and its group say to each other: the contract between `EpGroup`, which holds the GPU's
// state, and membership. One session is one incarnation in one slot.
//
// Who calls: the rank's process, from one thread. `commands` are to be carried out in order; each names
// the report that answers it. A command may be withdrawn by a later one (`arm` by `disarm` or another
// `arm`, `prepare` by another `prepare`); answering one that was withdrawn does no harm. After `evicted`
// or `release` nothing follows: the rank stops its kernels, unmaps its peers, reports `quiesced`, and
// opens a new session if it wants to come back.

import type { Copy, Ended, GroupConfig, Occupant, Placement, Seat, View } from "./view.ts";

/** An expert that this rank has to hold from the flip on. */
export interface NeededExpert {
  readonly expert: number;
  /** Where to put it: free now, in the old table as in the new one. */
  readonly local: number;
  /** Ranks that hold it; empty: nobody in the group does, it has to come from elsewhere. */
  readonly from: readonly Copy[];
}

export type Command =
  /** The seat is known. The first command of a session. */
  | { readonly type: "seat"; readonly seat: Seat; readonly view: View }
  /** Map a peer's window into its slot, masked. Answer: `mapped`. */
  | { readonly type: "map"; readonly seat: Seat; readonly occupant: Occupant }
  /** Point the slot at the sink; nothing uses it any more. Answer: `unmapped`. */
  | { readonly type: "unmap"; readonly seat: Seat }
  /** Load experts for plan `number`, keeping those in use. Answer: `ready`. */
  | {
      readonly type: "prepare";
      readonly number: number;
      readonly experts: readonly NeededExpert[];
      readonly placement: Placement;
    }
  /**
   * Write `onAtStep`, `offAtStep` and the next owners into the device, and launch nothing that contains
   * step `atStep` or a later one before `commit`. Answer: `armed`, or `refused` when such a step was
   * launched already. A rank that joins sets its counters so that `atStep` is its first step.
   */
  | {
      readonly type: "arm";
      readonly number: number;
      readonly atStep: number;
      readonly on: readonly Seat[];
      readonly off: readonly Seat[];
      readonly placement: Placement;
    }
  /** The gate of `arm` is open; an idle rank runs empty steps up to `atStep`. No answer. */
  | {
      readonly type: "commit";
      readonly number: number;
      readonly epoch: number;
      readonly atStep: number;
    }
  /** Take back what `arm` wrote and open its gate. No answer. */
  | { readonly type: "disarm"; readonly number: number }
  /**
   * Mask these at once, from another stream than the kernels', and take these owners on. The answer,
   * `masked`, names the first step since the last `masked` that did not finish well, or null.
   */
  | {
      readonly type: "mask";
      readonly epoch: number;
      readonly seats: readonly Seat[];
      readonly ended: readonly Ended[];
      readonly placement: Placement;
      /** What a committed change that is still ahead takes on instead of what `arm` said; null: none. */
      readonly next: Placement | null;
    }
  /** All survivors have masked: the group's first faulty step of that death, for discarding. No answer. */
  | { readonly type: "replay"; readonly epoch: number; readonly firstFaultyStep: number | null }
  /** The committed change is behind everybody: experts that the owners do not name may be overwritten. */
  | { readonly type: "settled"; readonly epoch: number; readonly placement: Placement }
  /** This rank has left or was never let in. Stop, unmap all. Answer: `quiesced`. */
  | { readonly type: "release"; readonly ended: Ended }
  /** The group goes on without this rank, which is alive. Stop, unmap all. Answer: `quiesced`. */
  | { readonly type: "evicted"; readonly ended: Ended | "stale" };

export type Report =
  | { readonly type: "mapped"; readonly seat: Seat }
  | { readonly type: "unmapped"; readonly seat: Seat }
  | { readonly type: "ready"; readonly number: number }
  | { readonly type: "armed"; readonly number: number }
  | { readonly type: "refused"; readonly number: number; readonly launchedStep: number }
  | {
      readonly type: "masked";
      readonly epoch: number;
      readonly firstFaultyStep: number | null;
    }
  /** How far this rank is: often enough, cheap. Steps count from 1; 0 is none. */
  | { readonly type: "progress"; readonly launchedStep: number; readonly completedStep: number }
  /** A kernel gave a peer up at `step`; the mask in the device holds until a verdict. */
  | { readonly type: "suspect"; readonly seat: Seat; readonly step: number }
  /** Tokens that this rank has routed to each expert lately: for the next plan. */
  | { readonly type: "load"; readonly experts: readonly number[] }
  /** This rank wants to go: it keeps on until `release`. */
  | { readonly type: "leave" }
  /** No kernel of this rank runs, no peer is mapped, and none will be under this seat. */
  | { readonly type: "quiesced" };

export interface MembershipSession extends AsyncDisposable {
  /** Ends after `evicted` or `release`, or when the session is closed. One reader. */
  readonly commands: AsyncIterable<Command>;
  /** The latest view; null before `seat`. */
  readonly view: View | null;
  /** Null before `seat`. */
  readonly seat: Seat | null;
  report(report: Report): void;
  /** Stops listening. Without a `quiesced` report before it this is a crash to the group. */
  close(): Promise<void>;
}

/** What a rank says to be let in. */
export interface JoinRequest {
  readonly config: GroupConfig;
  readonly occupant: Occupant;
  /** Sit in this slot or nowhere; null: any. */
  readonly wantedSlot: number | null;
}

/** Opens a session; it stays without a seat until the group lets the rank in. */
export type OpenMembership = (
  request: JoinRequest,
  signal: AbortSignal,
) => Promise<MembershipSession>;
