// SPDX-License-Identifier: Apache-2.0
// Who is asked for what: how a pull spreads missing pieces over its sources, takes a batch away from a
// source that is slow, and notices that nobody is left. Pure, like pull.ts.
//
// Batches shrink with what is missing, so that all lanes end at about the same time. Each starts at a
// random piece, so that targets of one source hold different parts early and can serve each other; and a
// source that has everything is asked first for what no other has, because only it can bring that. Within
// all of that, what the pull's order puts first comes first.

import type { Bits } from "./bits.ts";
import type { PullEffect } from "./pull-events.ts";
import { canSearchOn, isHungry, planSearch } from "./pull-search.ts";
import { assignPiece, type Batch, lengthOf, type Pull, type Source } from "./pull-state.ts";

export function planPull(pull: Pull, nowMs: number, effects: PullEffect[]): void {
  while (assignNext(pull, nowMs, effects));
  stealSlowest(pull, nowMs, effects);
  askForHave(pull, nowMs, effects);
  planSearch(pull, nowMs, effects);
  if (isHopeless(pull, nowMs)) {
    pull.outcome = { type: "failed", code: "sources_exhausted", message: complaint(pull) };
    return;
  }
  pull.wakeMs = nextWakeMs(pull, nowMs);
}

/** Gives one batch to the source that deserves it most; false when there is none. */
function assignNext(pull: Pull, nowMs: number, effects: PullEffect[]): boolean {
  if (pull.missing.isEmpty || pull.batches.size >= pull.settings.lanesMax) return false;
  for (const source of readySources(pull, nowMs)) {
    if (source.have !== null && !source.have.meets(pull.missing)) continue;
    if (isTooSlow(pull, source, nowMs)) continue;
    effects.push(assign(pull, { source, candidates: candidatesOf(pull, source), nowMs }));
    return true;
  }
  return false;
}

/** Usable now and with a free lane; the idle first, then who has parts only, then the fast. */
function readySources(pull: Pull, nowMs: number): Source[] {
  return [...pull.sources.values()]
    .filter((source) => isUsable(source, nowMs) && source.lanes < pull.settings.lanesPerSourceMax)
    .sort(
      (left, right) =>
        left.lanes - right.lanes ||
        Number(left.have === null) - Number(right.have === null) ||
        speedOf(right) - speedOf(left) ||
        left.rank - right.rank,
    );
}

function isUsable(source: Source, nowMs: number): boolean {
  return source.dropped === null && source.blockedUntilMs <= nowMs;
}

/** An unknown source counts as fast: that is how it becomes known. */
function speedOf(source: Source): number {
  return source.bytesPerMs ?? Number.MAX_VALUE;
}

/** Not empty: the caller has looked. */
function candidatesOf(pull: Pull, source: Source): Bits {
  if (source.have !== null) return mostWanted(pull, pull.missing.and(source.have));
  const wanted = mostWanted(pull, pull.missing);
  let rare = wanted;
  for (const { have, dropped } of pull.sources.values()) {
    if (have !== null && dropped === null) rare = rare.without(have);
  }
  return rare.isEmpty ? wanted : rare;
}

/** What of them the first group has that has any. */
function mostWanted(pull: Pull, candidates: Bits): Bits {
  const group = pull.order.find((bits) => bits.meets(candidates));
  return group === undefined ? candidates : candidates.and(group);
}

/** Whether the others would have brought everything before this source brought one piece. */
function isTooSlow(pull: Pull, source: Source, nowMs: number): boolean {
  if (source.bytesPerMs === null) return false;
  let othersBytesPerMs = 0;
  let fastestBytesPerMs = 0;
  for (const other of pull.sources.values()) {
    if (other === source || !isUsable(other, nowMs) || !hasAllMissing(pull, other)) continue;
    const bytesPerMs = other.bytesPerMs ?? 0;
    othersBytesPerMs += bytesPerMs * Math.max(1, other.lanes);
    fastestBytesPerMs = Math.max(fastestBytesPerMs, bytesPerMs);
  }
  if (othersBytesPerMs === 0) return false;
  const pieceBytes = pull.bytesLeft / pull.piecesLeft;
  // The others cannot share one piece: otherwise each of three equal sources would wait for the rest.
  const othersMs = Math.max(pull.bytesLeft / othersBytesPerMs, pieceBytes / fastestBytesPerMs);
  return pieceBytes / source.bytesPerMs > othersMs;
}

function hasAllMissing(pull: Pull, { have }: Source): boolean {
  return have === null || pull.missing.without(have).isEmpty;
}

function assign(
  pull: Pull,
  { source, candidates, nowMs }: { source: Source; candidates: Bits; nowMs: number },
): PullEffect {
  const bytesMax = batchBytes(pull, source);
  const pieces: number[] = [];
  let bytes = 0;
  for (const piece of candidates.from(Math.floor(pull.random() * candidates.size))) {
    const length = lengthOf(pull, piece);
    if (pieces.length > 0 && bytes + length > bytesMax) break;
    pieces.push(piece);
    bytes += length;
    if (pieces.length === pull.settings.batchPiecesMax) break;
  }
  for (const piece of pieces) assignPiece(pull, piece);
  pieces.sort((left, right) => left - right);
  const id = pull.nextBatch++;
  const { endpoint } = source;
  source.lanes++;
  source.batches++;
  pull.batches.set(id, {
    id,
    endpoint,
    startedMs: nowMs,
    pieces: new Set(pieces),
    bytesLeft: bytes,
    bytesDone: 0,
    isCancelled: false,
  });
  return { type: "fetch", batch: id, endpoint, pieces };
}

/** A share of what is missing, and no more than a second's worth of the source's speed. */
function batchBytes(pull: Pull, source: Source): number {
  const { batchBytesMin, batchBytesMax, lanesMax } = pull.settings;
  const share = pull.missingBytes / (2 * lanesMax);
  const secondsWorth = (source.bytesPerMs ?? Number.MAX_VALUE) * 1_000;
  return Math.min(batchBytesMax, Math.max(batchBytesMin, Math.min(share, secondsWorth)));
}

/**
 * Cancels the batch that will take longest when an idle source would bring its rest in half the time.
 * Its pieces are free again when the cancelled request has ended, so that none is fetched twice.
 */
function stealSlowest(pull: Pull, nowMs: number, effects: PullEffect[]): void {
  if (!pull.missing.isEmpty) return;
  const [slowest] = [...pull.batches.values()]
    .filter((batch) => !batch.isCancelled && nowMs - batch.startedMs >= pull.settings.stealMsMin)
    .sort((left, right) => msLeft(pull, right, nowMs) - msLeft(pull, left, nowMs));
  if (slowest === undefined || !hasFasterSource(pull, slowest, nowMs)) return;
  const { backoffMsMin, backoffMsMax } = pull.settings;
  slowest.isCancelled = true;
  const source = pull.sources.get(slowest.endpoint);
  if (source !== undefined) {
    source.stolen++;
    // Or it would be given the same pieces again as soon as they are free.
    source.blockedUntilMs = nowMs + Math.min(backoffMsMin * 2 ** source.stolen, backoffMsMax);
  }
  effects.push({ type: "cancel", batch: slowest.id });
}

/**
 * At the speed of this very batch: a source that has fallen silent is slow now, whatever it was. The piece
 * on its way counts as if it were there. Only whole pieces are told, and on a link where one takes longer
 * than `stealMsMin` every batch would otherwise look silent and be taken away for ever.
 */
function msLeft(pull: Pull, batch: Batch, nowMs: number): number {
  const [current] = batch.pieces;
  const bytesAtMost = batch.bytesDone + (current === undefined ? 0 : lengthOf(pull, current));
  const bytesPerMs = bytesAtMost / (nowMs - batch.startedMs);
  return bytesPerMs === 0 ? Number.MAX_VALUE : batch.bytesLeft / bytesPerMs;
}

function hasFasterSource(pull: Pull, batch: Batch, nowMs: number): boolean {
  return readySources(pull, nowMs).some((source) => {
    if (source.endpoint === batch.endpoint || source.bytesPerMs === null) return false;
    const hasRest =
      source.have === null || [...batch.pieces].every((piece) => source.have?.has(piece));
    const thereMs = batch.bytesLeft / source.bytesPerMs;
    return hasRest && msLeft(pull, batch, nowMs) > 2 * thereMs + pull.settings.stealMsMin;
  });
}

/** Asks those that lack every missing piece whether they have got some meanwhile. */
function askForHave(pull: Pull, nowMs: number, effects: PullEffect[]): void {
  for (const source of pull.sources.values()) {
    if (!wantsAsking(pull, source) || !isUsable(source, nowMs) || source.haveDueMs > nowMs)
      continue;
    source.isHaveAsked = true;
    effects.push({ type: "ask_have", endpoint: source.endpoint });
  }
}

function wantsAsking(pull: Pull, source: Source): boolean {
  return (
    source.dropped === null &&
    source.have !== null &&
    !source.isHaveAsked &&
    !pull.missing.isEmpty &&
    !source.have.meets(pull.missing)
  );
}

/** Nothing is under way and nothing can come. */
function isHopeless(pull: Pull, nowMs: number): boolean {
  if (pull.batches.size > 0 || pull.piecesLeft === 0) return false;
  const isAnyLeft = [...pull.sources.values()].some((source) => source.dropped === null);
  const isForsaken = !isAnyLeft && !canSearchOn(pull);
  return isForsaken || nowMs - pull.hopeMs >= pull.settings.starvedMsMax;
}

function complaint(pull: Pull): string {
  const each = [...pull.sources.values()].map(
    ({ endpoint, dropped }) => `${endpoint} (${dropped?.code ?? "lacks what is missing"})`,
  );
  return `Cannot fetch ${pull.piecesLeft} pieces: no source is left of ${each.join(", ") || "none"}`;
}

function nextWakeMs(pull: Pull, nowMs: number): number | null {
  const times: number[] = [];
  for (const source of pull.sources.values()) {
    if (source.dropped !== null) continue;
    if (source.blockedUntilMs > nowMs) times.push(source.blockedUntilMs);
    else if (wantsAsking(pull, source)) times.push(source.haveDueMs);
  }
  if (pull.batches.size === 0) times.push(pull.hopeMs + pull.settings.starvedMsMax);
  else if (pull.missing.isEmpty && pull.sources.size > 1) {
    times.push(nowMs + pull.settings.stealMsMin);
  }
  if (pull.search !== null && !pull.search.isUnderWay && isHungry(pull)) {
    times.push(pull.search.dueMs);
  }
  return times.length === 0 ? null : Math.max(nowMs + 1, Math.min(...times));
}
