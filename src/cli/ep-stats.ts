// SPDX-License-Identifier: Apache-2.0
// What ranks told of their steps, summed over a stretch of time. Pure.

import type { StepRecord, ToldEvent } from "./ep-link.ts";

export interface Stretch {
  readonly fromMs: number;
  readonly toMs: number;
}

export interface StretchSummary {
  readonly ms: number;
  /** Rows of good steps of all ranks in a second. */
  readonly tokensPerSecond: number;
  /** Of one run, on the slowest rank. */
  readonly medianMs: number;
  readonly worstMs: number;
  readonly rows: number;
  /** Rows that were not what the layer gives without an exchange, in steps that claimed to be good. */
  readonly wrong: number;
  /** Runs that told that somebody was missing, and are to be done again. */
  readonly faulty: number;
}

interface Teller {
  readonly steps: readonly StepRecord[];
  readonly events: readonly { readonly atMs: number; readonly event: ToldEvent }[];
}

export function summarise(ranks: readonly Teller[], { fromMs, toMs }: Stretch): StretchSummary {
  const records = ranks.flatMap(({ steps }) =>
    steps.filter(({ endedAtMs }) => fromMs <= endedAtMs && endedAtMs < toMs),
  );
  const good = records.filter(({ isGood }) => isGood);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const rows = sum(good.map((record) => record.rows));
  const times = records.map(({ ms }) => ms).sort((a, b) => a - b);
  const ms = toMs - fromMs;
  return {
    ms,
    tokensPerSecond: ms > 0 ? (1_000 * rows) / ms : 0,
    medianMs: times[times.length >> 1] ?? 0,
    worstMs: times.at(-1) ?? 0,
    rows,
    wrong: sum(good.map(({ wrong }) => wrong)),
    faulty: records.length - good.length,
  };
}

/** When the rank first told an event of this type after a moment; null: not yet. */
export function toldAtMs(rank: Teller, type: ToldEvent["type"], afterMs: number): number | null {
  return (
    rank.events.find(({ atMs, event }) => event.type === type && atMs >= afterMs)?.atMs ?? null
  );
}

/** The end of the first good run after a moment, by default with every expert there. */
export function goodStepAtMs(rank: Teller, afterMs: number, missingMax = 0): number | null {
  const found = rank.steps.find(
    ({ endedAtMs, isGood, missing }) => isGood && missing <= missingMax && endedAtMs >= afterMs,
  );
  return found?.endedAtMs ?? null;
}
