// SPDX-License-Identifier: Apache-2.0
// Defines what dispatch and combine give, for all ranks at once and without any of the cleverness:
// which rows each local expert receives, in which order, and what a token's owners add up to.

import { fromBf16, quantise, type Row, type RowFormat, toBf16 } from "./quantise.ts";

/** One rank's step. `experts[token]` are global experts, negative for none. */
export type Step = {
  readonly tokens: readonly Uint16Array[];
  readonly experts: readonly (readonly number[])[];
  readonly weights: readonly (readonly number[])[];
};

/** Where an expert lives. */
export type Owner = { readonly rank: number; readonly local: number };

/** A row that an expert received. */
export type Received = { readonly source: number; readonly token: number; readonly row: Row };

export type Exchange = {
  readonly steps: readonly Step[];
  readonly owners: readonly (Owner | null)[];
  readonly alive: readonly boolean[];
  readonly format: RowFormat;
};

/** Rows of local expert `local` on `rank`: by source, then token, then choice. */
export function received(exchange: Exchange, rank: number, local: number): Received[] {
  const rows: Received[] = [];
  exchange.steps.forEach((step, source) => {
    if (!exchange.alive[source] || !exchange.alive[rank]) return;
    step.tokens.forEach((token, at) => {
      for (const expert of step.experts[at] ?? []) {
        const owner = exchange.owners[expert];
        if (owner?.rank !== rank || owner.local !== local) continue;
        rows.push({ source, token: at, row: quantise(token, exchange.format) });
      }
    });
  });
  return rows;
}

/**
 * What combine returns to `rank`, in bf16 bit patterns: each alive owner's weighted sum is rounded to
 * bf16 once, the owners are added in the order of their ranks, the total is rounded once more.
 * `expert` maps a received row to the expert's bf16 output. A dead owner's part is missing, and
 * nothing is renormalised.
 */
export function combined(
  exchange: Exchange,
  rank: number,
  expert: (values: Float64Array, expert: number) => Uint16Array,
): Uint16Array[] {
  const step = exchange.steps[rank];
  if (step === undefined) return [];
  return step.tokens.map((token, at) => {
    const { values } = quantise(token, exchange.format);
    const byOwner = new Map<number, Float64Array>();
    (step.experts[at] ?? []).forEach((chosen, choice) => {
      const owner = exchange.owners[chosen];
      if (!owner || !exchange.alive[owner.rank]) return;
      const sum = byOwner.get(owner.rank) ?? new Float64Array(values.length);
      const weight = Math.fround(step.weights[at]?.[choice] ?? 0);
      expert(values, chosen).forEach((bits, i) => {
        sum[i] = (sum[i] ?? 0) + weight * fromBf16(bits);
      });
      byOwner.set(owner.rank, sum);
    });
    return addedUp(byOwner, values.length);
  });
}

function addedUp(byOwner: ReadonlyMap<number, Float64Array>, hidden: number): Uint16Array {
  const total = new Float64Array(hidden);
  for (const rank of [...byOwner.keys()].sort((a, b) => a - b)) {
    byOwner.get(rank)?.forEach((value, i) => {
      total[i] = (total[i] ?? 0) + fromBf16(toBf16(value));
    });
  }
  return Uint16Array.from(total, toBf16);
}
