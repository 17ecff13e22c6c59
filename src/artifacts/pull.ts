// SPDX-License-Identifier: Apache-2.0
// Pulling one artifact from several sources at once, as a state machine: an event and a time in, effects
// out. Opens no socket, sets no timer; pull-run.ts does, and the simulator in its place. The state is
// changed in place, because a pull has tens of thousands of pieces and a simulated fleet a thousand pulls.
// Who is asked for what is in pull-plan.ts.

import type { PieceSet } from "../core/pieces.ts";
import { assert, type Code, codes } from "../errors.ts";
import type { Failure, PullEffect, PullEvent } from "./pull-events.ts";
import { planPull } from "./pull-plan.ts";
import { found, searchDone, searchFailed } from "./pull-search.ts";
import {
  type Batch,
  bitsOf,
  endBatch,
  lengthOf,
  orderOf,
  type Pull,
  type PullOutcome,
  type Source,
  type SourceFailure,
} from "./pull-state.ts";

/** What to do next. After `finish` nothing follows, whatever the events. */
export function step(pull: Pull, event: PullEvent, nowMs: number): PullEffect[] {
  if (pull.outcome !== null) return [];
  apply(pull, event, nowMs);
  const effects: PullEffect[] = [];
  // Batches whose pieces have all arrived end by themselves; cancelling them would cost a connection.
  if (pull.piecesLeft === 0 && pull.batches.size === 0) pull.outcome = { type: "complete" };
  if (pull.outcome === null) planPull(pull, nowMs, effects);
  if (pull.outcome !== null) finish(pull, pull.outcome, effects);
  return effects;
}

function apply(pull: Pull, event: PullEvent, nowMs: number): void {
  switch (event.type) {
    case "source_found":
      found(pull, event, nowMs);
      break;
    case "source_lost":
      lost(pull, event.endpoint, nowMs);
      break;
    case "have_known":
      haveKnown(pull, event, nowMs);
      break;
    case "have_failed":
      haveFailed(pull, event, nowMs);
      break;
    case "pieces_verified":
      verified(pull, event, nowMs);
      break;
    case "batch_done":
      batchDone(pull, event, nowMs);
      break;
    case "batch_failed":
      batchFailed(pull, event, nowMs);
      break;
    case "search_done":
      searchDone(pull, event.sources, nowMs);
      break;
    case "search_failed":
      searchFailed(pull, nowMs);
      break;
    case "reordered":
      pull.order = orderOf(pull.lengths.length, event.order);
      break;
    case "tick":
  }
}

function lost(pull: Pull, endpoint: string, nowMs: number): void {
  const source = pull.sources.get(endpoint);
  // Its batch under way may still succeed; the connection tells better than a third party.
  if (source !== undefined) {
    const message = "Cannot use the source: it was withdrawn";
    drop(source, { code: "source_gone", message }, nowMs);
  }
}

function haveKnown(
  pull: Pull,
  { endpoint, have }: { endpoint: string; have: PieceSet },
  nowMs: number,
): void {
  const source = sourceOf(pull, endpoint);
  const { haveMsMin, haveMsMax } = pull.settings;
  const bits = bitsOf(have);
  const before = source.have?.and(pull.missing).count() ?? 0;
  source.have = bits.count() === bits.size ? null : bits;
  source.isHaveAsked = false;
  const hasNew = bits.and(pull.missing).count() > before;
  if (hasNew) pull.hopeMs = nowMs;
  source.haveWaitMs = hasNew ? haveMsMin : Math.min(2 * source.haveWaitMs, haveMsMax);
  source.haveDueMs = nowMs + source.haveWaitMs * (0.5 + pull.random());
}

function haveFailed(
  pull: Pull,
  { endpoint, failure }: { endpoint: string; failure: Failure },
  nowMs: number,
): void {
  const source = sourceOf(pull, endpoint);
  source.isHaveAsked = false;
  blame(pull, { source, failure, nowMs });
}

function verified(
  pull: Pull,
  { batch: id, pieces }: { batch: number; pieces: readonly number[] },
  nowMs: number,
): void {
  const batch = batchOf(pull, id);
  const source = sourceOf(pull, batch.endpoint);
  for (const piece of pieces) {
    assert(batch.pieces.delete(piece), "a batch verifies each of its pieces once");
    const bytes = lengthOf(pull, piece);
    batch.bytesLeft -= bytes;
    batch.bytesDone += bytes;
    source.bytes += bytes;
    pull.bytesLeft -= bytes;
  }
  source.pieces += pieces.length;
  source.failuresInRow = 0;
  source.busyInRow = 0;
  pull.piecesLeft -= pieces.length;
  pull.hopeMs = nowMs;
}

function batchDone(
  pull: Pull,
  { batch: id, refused }: { batch: number; refused: readonly number[] },
  nowMs: number,
): void {
  const batch = batchOf(pull, id);
  const source = sourceOf(pull, batch.endpoint);
  learnSpeed(source, batch, nowMs);
  endBatch(pull, batch);
  source.have ??= everything(pull, refused);
  for (const piece of refused) source.have?.remove(piece);
}

function batchFailed(
  pull: Pull,
  { batch: id, failure }: { batch: number; failure: Failure },
  nowMs: number,
): void {
  const batch = batchOf(pull, id);
  const source = sourceOf(pull, batch.endpoint);
  learnSpeed(source, batch, nowMs);
  endBatch(pull, batch);
  if (batch.isCancelled && failure.code === "cancelled") return;
  // A full disk or a defect of ours: no other source will help.
  if (codes[failure.code].blame !== "remote") {
    pull.outcome = { type: "failed", code: failure.code, message: failure.message };
    return;
  }
  blame(pull, { source, failure, nowMs });
}

/** Counts a failure and decides whether, and when, the source is asked again. */
function blame(
  pull: Pull,
  { source, failure, nowMs }: { source: Source; failure: Failure; nowMs: number },
): void {
  source.failures.set(failure.code, (source.failures.get(failure.code) ?? 0) + 1);
  if (failure.code === "source_busy") {
    source.busyInRow++;
    pull.hopeMs = nowMs;
    const askedMs = failure.retryAfterMs ?? 0;
    block(pull, { source, nowMs, waitMs: Math.max(askedMs, backoffMs(pull, source.busyInRow)) });
    return;
  }
  source.failuresInRow++;
  const isPassing = failure.code === "source_unreachable" || failure.code === "source_stalled";
  if (!isPassing || source.failuresInRow >= pull.settings.failuresMax) drop(source, failure, nowMs);
  else block(pull, { source, nowMs, waitMs: backoffMs(pull, source.failuresInRow) });
}

function block(
  pull: Pull,
  { source, nowMs, waitMs }: { source: Source; nowMs: number; waitMs: number },
): void {
  // Jitter upwards only: what a busy source asked for is a minimum.
  source.blockedUntilMs = nowMs + waitMs * (1 + pull.random());
}

function backoffMs(pull: Pull, failures: number): number {
  const { backoffMsMin, backoffMsMax } = pull.settings;
  return Math.min(backoffMsMin * 2 ** (failures - 1), backoffMsMax);
}

function drop(source: Source, { code, message }: SourceFailure, nowMs: number): void {
  if (source.dropped !== null) return;
  source.dropped = { code, message };
  source.droppedMs = nowMs;
}

function learnSpeed(source: Source, batch: Batch, nowMs: number): void {
  // A batch of empty files, or one turned away at once, tells nothing.
  const isTelling = batch.bytesDone > 0 || batch.isCancelled;
  if (!isTelling) return;
  const bytesPerMs = batch.bytesDone / Math.max(1, nowMs - batch.startedMs);
  source.bytesPerMs =
    source.bytesPerMs === null ? bytesPerMs : (source.bytesPerMs + bytesPerMs) / 2;
}

function everything(pull: Pull, refused: readonly number[]): Source["have"] {
  if (refused.length === 0) return null;
  const have = pull.missing.without(pull.missing);
  have.addAll();
  return have;
}

function finish(pull: Pull, outcome: PullOutcome, effects: PullEffect[]): void {
  pull.wakeMs = null;
  for (const { id, isCancelled } of pull.batches.values()) {
    if (!isCancelled) effects.push({ type: "cancel", batch: id });
  }
  effects.push({ type: "finish", outcome });
}

function sourceOf(pull: Pull, endpoint: string): Source {
  const source = pull.sources.get(endpoint);
  assert(source !== undefined, "an event names a source of the pull");
  return source;
}

function batchOf(pull: Pull, id: number): Batch {
  const batch = pull.batches.get(id);
  assert(batch !== undefined, "an event names a batch under way");
  return batch;
}

/** What a source did in a pull, for the ledger. */
export interface SourceReport {
  readonly endpoint: string;
  /** Verified. */
  readonly bytes: number;
  readonly pieces: number;
  readonly batches: number;
  /** Batches moved to a faster source. */
  readonly stolen: number;
  readonly failures: Readonly<Partial<Record<Code, number>>>;
  /** Why it was given up; null while it may still be used. */
  readonly dropped: SourceFailure | null;
}

export interface PullReport {
  /** Verified. */
  readonly bytes: number;
  readonly pieces: number;
  readonly bytesLeft: number;
  readonly piecesLeft: number;
  /** Requests that ended without all they asked for. */
  readonly retries: number;
  readonly sources: readonly SourceReport[];
}

/** The sum so far; may be asked at any time. */
export function reportOf(pull: Pull): PullReport {
  const { bytesLeft, piecesLeft } = pull;
  const sources = [...pull.sources.values()];
  const sum = (count: (source: Source) => number) =>
    sources.reduce((total, source) => total + count(source), 0);
  return {
    bytes: sum((source) => source.bytes),
    pieces: sum((source) => source.pieces),
    bytesLeft,
    piecesLeft,
    retries: sum(({ failures, stolen }) => sumOf(failures.values()) + stolen),
    sources: sources.map((source) => ({
      endpoint: source.endpoint,
      bytes: source.bytes,
      pieces: source.pieces,
      batches: source.batches,
      stolen: source.stolen,
      failures: Object.fromEntries(source.failures),
      dropped: source.dropped,
    })),
  };
}

function sumOf(numbers: Iterable<number>): number {
  let sum = 0;
  for (const number of numbers) sum += number;
  return sum;
}
