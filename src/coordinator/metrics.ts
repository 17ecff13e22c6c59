// SPDX-License-Identifier: Apache-2.0
// What the coordinator counts; names and meaning are rows of observe/metrics.ts.

import { Metrics, metrics as table } from "../observe/metrics.ts";
import { BootCounter } from "./boot-counter.ts";
import type { Advanced, Registry } from "./registry.ts";
import type { Observe } from "./rpc.ts";

export interface CoordinatorMetrics {
  readonly contentType: string;
  readonly observe: Observe;
  advanced(advanced: Advanced): void;
  strangerRefused(): void;
  boot(boot: { readonly bootId: string; readonly record: Uint8Array }): void;
  /** The page that Prometheus reads. */
  text(): Promise<string>;
}

export function createMetrics(registry: Registry): CoordinatorMetrics {
  const metrics = new Metrics(table);
  metrics.includeProcess();
  const boots = new BootCounter();
  return {
    contentType: metrics.contentType,
    observe: ({ method, ms, error }) => {
      metrics.count("relight_coordinator_calls_total", { method, code: error?.code ?? "ok" });
      metrics.observe("relight_coordinator_call_duration_ms", { method }, ms);
    },
    strangerRefused: () => metrics.count("relight_coordinator_strangers_total", {}),
    advanced: ({ sessionsLost, markedStale, removed, failure }) => {
      metrics.count("relight_coordinator_sessions_lost_total", {}, sessionsLost);
      metrics.count("relight_coordinator_sources_stale_total", {}, markedStale);
      metrics.count("relight_coordinator_sources_removed_total", {}, removed);
      if (failure !== null) metrics.count("relight_coordinator_advance_failures_total", {});
    },
    boot: ({ bootId, record }) => {
      const labels = boots.labelsOf(bootId, record);
      if (labels !== null) metrics.count("relight_boots_total", { ...labels });
    },
    text: () => {
      metrics.set("relight_coordinator_sources", {}, registry.sourceCount);
      metrics.set("relight_coordinator_sessions", {}, registry.sessionCount);
      return metrics.render();
    },
  };
}
