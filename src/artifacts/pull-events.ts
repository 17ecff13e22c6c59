// SPDX-License-Identifier: Apache-2.0
// What happens to a pull, and what it wants done.

import type { PieceSet } from "../core/pieces.ts";
import type { PieceGroups, PullOutcome, SourceFailure } from "./pull-state.ts";

export interface Failure extends SourceFailure {
  /** What a busy source asked for; null when it named nothing. */
  readonly retryAfterMs: number | null;
}

export interface FoundPullSource {
  readonly endpoint: string;
  /** Known to have every piece; one that still receives is asked for what it has. */
  readonly isComplete: boolean;
}

export type PullEvent =
  /** A source was found; `isComplete` when it is known to have every piece. */
  | { readonly type: "source_found"; readonly endpoint: string; readonly isComplete: boolean }
  /** The coordinator says that a source is gone. */
  | { readonly type: "source_lost"; readonly endpoint: string }
  | { readonly type: "have_known"; readonly endpoint: string; readonly have: PieceSet }
  | { readonly type: "have_failed"; readonly endpoint: string; readonly failure: Failure }
  | { readonly type: "pieces_verified"; readonly batch: number; readonly pieces: readonly number[] }
  | { readonly type: "batch_done"; readonly batch: number; readonly refused: readonly number[] }
  | { readonly type: "batch_failed"; readonly batch: number; readonly failure: Failure }
  /** What the coordinator offers now, also those known already. */
  | { readonly type: "search_done"; readonly sources: readonly FoundPullSource[] }
  | { readonly type: "search_failed" }
  /** What is wanted first has become known, or has changed. What is under way stays under way. */
  | { readonly type: "reordered"; readonly order: PieceGroups }
  | { readonly type: "tick" };

export type PullEffect =
  | {
      readonly type: "fetch";
      readonly batch: number;
      readonly endpoint: string;
      readonly pieces: readonly number[];
    }
  /** The batch still ends with an event; only then are its pieces given to another source. */
  | { readonly type: "cancel"; readonly batch: number }
  | { readonly type: "ask_have"; readonly endpoint: string }
  /** Ask the coordinator who else has the artifact; ends with `search_done` or `search_failed`. */
  | { readonly type: "search" }
  | { readonly type: "finish"; readonly outcome: PullOutcome };
