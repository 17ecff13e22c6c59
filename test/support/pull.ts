// SPDX-License-Identifier: Apache-2.0
// A pull over real sockets, with everything defaulted that a test does not speak about.

import { type PullOptions, type RunningPull, startPull } from "../../src/artifacts/pull-run.ts";
import { pullSettings } from "../../src/artifacts/pull-state.ts";
import { systemClock } from "../../src/platform/clock.ts";
import { generator } from "./tree.ts";

export function pullWith(
  options: Pick<PullOptions, "fetcher" | "artifactId" | "sources" | "staging"> &
    Partial<Omit<PullOptions, "settings">> & { settings?: Partial<PullOptions["settings"]> },
): RunningPull {
  const random = generator(7);
  return startPull({
    clock: systemClock,
    random: () => random() / 2 ** 32,
    signal: AbortSignal.timeout(30_000),
    ...options,
    settings: { ...pullSettings, ...options.settings },
  });
}
