// SPDX-License-Identifier: Apache-2.0
// How a pull learns of more sources while it runs: when it asks the coordinator, and what it makes of
// the answer. Without this a relay that appears a second later helps nobody. Pure, like pull.ts.

import type { Code } from "../errors.ts";
import { Bits } from "./bits.ts";
import type { FoundPullSource, PullEffect } from "./pull-events.ts";
import { createSource, type Pull, type Source } from "./pull-state.ts";

/** What may pass by itself: the coordinator would not offer the source again if it had not. */
const passing: ReadonlySet<Code> = new Set(["source_unreachable", "source_stalled", "source_gone"]);

/** Asks now when no source is left, and now and then while a lane is free. */
export function planSearch(pull: Pull, nowMs: number, effects: PullEffect[]): void {
  const { search } = pull;
  if (search === null || search.isUnderWay || !isHungry(pull)) return;
  const isAlone = liveCount(pull) === 0;
  const isUrgent = isAlone && !search.isSpent && !search.hasFailed;
  if (!isUrgent && search.dueMs > nowMs) return;
  search.isUnderWay = true;
  search.isSpent = isAlone;
  effects.push({ type: "search" });
}

/** Whether another source would be used if there were one. */
export function isHungry(pull: Pull): boolean {
  return !pull.missing.isEmpty && pull.batches.size < pull.settings.lanesMax;
}

/** Whether a search may still bring a source to a pull that has none. */
export function canSearchOn({ search }: Pull): boolean {
  return search !== null && (search.isUnderWay || !search.isSpent);
}

export function searchDone(pull: Pull, sources: readonly FoundPullSource[], nowMs: number): void {
  const news = sources.map((source) => found(pull, source, nowMs)).filter(Boolean).length;
  settle(pull, { nowMs, hasNews: news > 0 });
  if (pull.search !== null) pull.search.hasFailed = false;
}

/** Nothing was learnt, so that what is spent is not known either: it is asked again, later. */
export function searchFailed(pull: Pull, nowMs: number): void {
  settle(pull, { nowMs, hasNews: false });
  if (pull.search === null) return;
  pull.search.isSpent = false;
  pull.search.hasFailed = true;
}

function settle(pull: Pull, { nowMs, hasNews }: { nowMs: number; hasNews: boolean }): void {
  const { search, settings } = pull;
  if (search === null) return;
  search.isUnderWay = false;
  if (hasNews) search.isSpent = false;
  search.waitMs = hasNews
    ? settings.searchMsMin
    : Math.min(2 * search.waitMs, settings.searchMsMax);
  search.dueMs = nowMs + search.waitMs * (0.5 + pull.random());
}

/** True when the source can be used and could not before. */
export function found(
  pull: Pull,
  { endpoint, isComplete }: FoundPullSource,
  nowMs: number,
): boolean {
  const known = pull.sources.get(endpoint);
  if (known !== undefined) return meetAgain(pull, known, { isComplete, nowMs });
  if (liveCount(pull) >= pull.settings.sourcesMax) return false;
  pull.sources.set(endpoint, createSource(pull, { endpoint, isComplete, nowMs }));
  pull.hopeMs = nowMs;
  return true;
}

function meetAgain(
  pull: Pull,
  source: Source,
  { isComplete, nowMs }: { isComplete: boolean; nowMs: number },
): boolean {
  const { failuresMax, reviveMsMin } = pull.settings;
  const { dropped } = source;
  const isUpgrade = isComplete && !source.isComplete;
  source.isComplete = isComplete;
  if (dropped === null) {
    // What a complete source has refused stays refused: only the word that it became complete counts.
    if (isUpgrade) source.have = null;
    return false;
  }
  if (!passing.has(dropped.code) || nowMs - source.droppedMs < reviveMsMin) return false;
  source.dropped = null;
  source.have = isComplete ? null : new Bits(pull.lengths.length);
  source.haveDueMs = nowMs;
  // One more failure drops it again: the coordinator may reach a source that this target can not.
  source.failuresInRow = failuresMax - 1;
  pull.hopeMs = nowMs;
  return true;
}

function liveCount(pull: Pull): number {
  let count = 0;
  for (const { dropped } of pull.sources.values()) if (dropped === null) count++;
  return count;
}
