// SPDX-License-Identifier: Apache-2.0
// Fan-out in virtual time: 10, 100 and 1,000 replicas start at once against one warm source, each with a
// link of 10 Gb/s and 253 MiB to fetch. Production code decides (coordinator, agent, pull); clock and
// network are simulated (test/simulation), so that a number here repeats exactly and on any machine.

import assert from "node:assert/strict";
import { type FanOutResult, playFanOut } from "../test/simulation/simulate.ts";
import type { Emit } from "./main.ts";

const seed = 1;
const fleets = [10, 100, 1_000] as const;
const largest = 1_000;

export async function run(emit: Emit): Promise<void> {
  const seconds: number[] = [];
  for (const replicas of fleets) {
    const relayed = await play(replicas, true);
    seconds.push(relayed.seconds);
    emit({ name: `sim.fanout.seconds_${replicas}`, value: relayed.seconds, unit: "s" });
  }
  const direct = await play(largest, false);
  const withRelay = seconds.at(-1) ?? 0;
  emit({
    name: "sim.fanout.relay_vs_direct",
    value: withRelay,
    unit: "s",
    baseline: direct.seconds,
    ratio: direct.seconds / withRelay,
  });
  const line = fit(fleets.map(Math.log2), seconds);
  emit({ name: "sim.fanout.growth", value: line.slope, unit: "s per doubling" });
  emit({ name: "sim.fanout.growth_start", value: line.start, unit: "s" });
  emit({ name: "sim.fanout.growth_residual", value: line.residual, unit: "s" });
}

async function play(replicas: number, isRelaying: boolean): Promise<FanOutResult> {
  const result = await playFanOut({ seed, replicas, isRelaying });
  assert.equal(result.warm, replicas, "every replica is warm");
  assert.deepEqual(result.violations, [], "no checker objects");
  return result;
}

/** Least squares; the residual is the largest distance of a point from the line. */
function fit(xs: readonly number[], ys: readonly number[]) {
  const mean = (values: readonly number[]) =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  const [meanX, meanY] = [mean(xs), mean(ys)];
  const products = xs.map((x, index) => (x - meanX) * ((ys[index] ?? 0) - meanY));
  const squares = xs.map((x) => (x - meanX) ** 2);
  const slope = mean(products) / mean(squares);
  const start = meanY - slope * meanX;
  const distances = xs.map((x, index) => Math.abs((ys[index] ?? 0) - (start + slope * x)));
  return { slope, start, residual: Math.max(...distances) };
}
