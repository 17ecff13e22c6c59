// SPDX-License-Identifier: Apache-2.0
// The coordinator's metrics: names, units and meaning in one place. Labels are closed sets: our own
// methods and the rows of the error table.

import { Counter, Gauge, Histogram, Registry as Prometheus } from "prom-client";
import type { Advanced, Registry } from "./registry.ts";
import type { Observe } from "./rpc.ts";

export interface Metrics {
  readonly contentType: string;
  readonly observe: Observe;
  advanced(advanced: Advanced): void;
  text(): Promise<string>;
}

const durationBucketsMs = [0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1_000, 5_000];

export function createMetrics(registry: Registry): Metrics {
  const prometheus = new Prometheus();
  const registers = [prometheus];
  const counter = (name: string, help: string, labelNames: string[] = []): Counter =>
    new Counter({ name, help, labelNames, registers });
  const calls = counter(
    "relight_coordinator_calls_total",
    "Finished unary calls; code is `ok` or an error code.",
    ["method", "code"],
  );
  const durations = new Histogram({
    name: "relight_coordinator_call_duration_ms",
    help: "From the request's arrival to its answer, in milliseconds.",
    labelNames: ["method"],
    buckets: durationBucketsMs,
    registers,
  });
  const lost = counter(
    "relight_coordinator_sessions_lost_total",
    "Sessions that ended by silence.",
  );
  const stale = counter(
    "relight_coordinator_sources_stale_total",
    "Records marked stale by silence.",
  );
  const removed = counter(
    "relight_coordinator_sources_removed_total",
    "Stale records removed by age.",
  );
  const failures = counter(
    "relight_coordinator_advance_failures_total",
    "Rounds of the deadline queue in which the store failed.",
  );
  gauge(
    registers,
    "relight_coordinator_sources",
    "Records known, live or stale.",
    () => registry.sourceCount,
  );
  gauge(
    registers,
    "relight_coordinator_sessions",
    "Sessions of agents that are live.",
    () => registry.sessionCount,
  );
  return {
    contentType: prometheus.contentType,
    observe: ({ method, ms, error }) => {
      calls.inc({ method, code: error?.code ?? "ok" });
      durations.observe({ method }, ms);
    },
    advanced: ({ sessionsLost, markedStale, removed: removedCount, failure }) => {
      lost.inc(sessionsLost);
      stale.inc(markedStale);
      removed.inc(removedCount);
      if (failure !== null) failures.inc();
    },
    text: () => prometheus.metrics(),
  };
}

function gauge(registers: Prometheus[], name: string, help: string, read: () => number): void {
  new Gauge({
    name,
    help,
    registers,
    collect() {
      this.set(read());
    },
  });
}
