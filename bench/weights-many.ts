// SPDX-License-Identifier: Apache-2.0
// One source and a target on every other GPU, all asking at once: each from the source, and in a chain
// that forms by itself where the source admits one reader. From being asked to the last one verified.

import type { Emit } from "./main.ts";
import { gpuCount, inFleet, type Report } from "./weights-pair.ts";

const rounds = 3;

export async function run(emit: Emit): Promise<void> {
  const count = await gpuCount();
  if (count < 3) {
    console.error(`weights-many: ${count} GPUs here, 3 needed`);
    return;
  }
  for (const [name, readersMax] of [
    ["one_source", count],
    ["chain", 1],
  ] as const) {
    await measureMany(emit, { name, readersMax, count });
  }
}

async function measureMany(
  emit: Emit,
  how: { readonly name: string; readonly readersMax: number; readonly count: number },
): Promise<void> {
  const agent = { readersMax: how.readersMax, busyMsMax: 30_000 };
  await inFleet({ agent, count: how.count }, async (fleet) => {
    const engines = await Promise.all(
      Array.from({ length: how.count }, (_, index) =>
        fleet.engine(index, "llama70bOf8", "reserved"),
      ),
    );
    const [source, ...targets] = engines;
    await source?.ask("publish");
    const from = fleet.address(0);
    const one = await best(async () => [await targets[0]?.load(from)]);
    const all = await best(() => Promise.all(targets.map((target) => target.load(from))));
    const bytes = all.reports.reduce((sum, report) => sum + (report?.bytes ?? 0), 0);
    const told = (what: string, value: number, unit: string) =>
      emit({ name: `weights.many.${how.name}.${what}`, value, unit });
    told("targets", targets.length, "targets");
    told("aggregate_gbs", bytes / all.ms / 1e6, "GB/s");
    told("slowest_read_ms", Math.max(...all.reports.map((report) => report?.readMs ?? 0)), "ms");
    told("read_gbs", bytes / Math.max(...all.reports.map((one) => one?.readMs ?? 0)) / 1e6, "GB/s");
    const relayed = all.reports.filter((report) => report?.sources[0] !== from);
    told("from_a_target", relayed.length, "targets");
    emit({
      name: `weights.many.${how.name}.vs_one`,
      value: all.ms,
      unit: "ms",
      baseline: one.ms,
      ratio: one.ms / all.ms,
    });
  });
}

async function best(load: () => Promise<(Report | undefined)[]>) {
  let kept: { ms: number; reports: (Report | undefined)[] } | null = null;
  for (let round = 0; round < rounds; round += 1) {
    const began = performance.now();
    const reports = await load();
    const ms = performance.now() - began;
    if (kept === null || ms < kept.ms) kept = { ms, reports };
  }
  return kept ?? { ms: 0, reports: [] };
}
