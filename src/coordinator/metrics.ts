// SPDX-License-Identifier: Apache-2.0
// What the coordinator counts; names and meaning are rows of observe/metrics.ts.

import type { Group } from "../elastic/group.ts";
import { isMember } from "../elastic/view.ts";
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
  group(group: Group, before: Group | null): void;
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
      const counts = boots.countsOf(bootId, record);
      if (counts === null) return;
      metrics.count("relight_boots_total", { ...counts.boot });
      for (const labels of counts.weights) metrics.count("relight_weights_total", { ...labels });
    },
    group: (group, before) => {
      const labels = { group: group.config.group };
      metrics.set("relight_ep_ranks", labels, group.slots.filter(isMember).length);
      metrics.set("relight_ep_epoch", labels, group.epoch);
      for (const { ended, epoch } of group.faults) {
        if (before !== null && epoch > before.epoch)
          metrics.count("relight_ep_deaths_total", { ...labels, ended });
      }
      const known = new Set(before?.finished.map(({ request }) => request.operationId));
      for (const { request, phase, phases } of group.finished) {
        if (before === null || known.has(request.operationId)) continue;
        metrics.count("relight_ep_operations_total", { ...labels, kind: request.kind, phase });
        const ms = (phases.at(-1)?.atMs ?? 0) - (phases[0]?.atMs ?? 0);
        metrics.observe("relight_ep_operation_duration_ms", { ...labels, kind: request.kind }, ms);
      }
    },
    text: () => {
      metrics.set("relight_coordinator_sources", {}, registry.sourceCount);
      metrics.set("relight_coordinator_sessions", {}, registry.sessionCount);
      return metrics.render();
    },
  };
}
