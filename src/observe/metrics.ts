// SPDX-License-Identifier: Apache-2.0
// Every metric, once: name, type, unit, labels, meaning. The registry of a process is built from the
// table and docs/metrics.md derives from it. Labels are bounded sets; names end in their unit.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { assert } from "../errors.ts";

export interface MetricFacts {
  readonly type: "counter" | "gauge" | "histogram";
  readonly unit: string;
  readonly labels: readonly string[];
  readonly about: string;
  /** Upper bounds of a histogram's buckets, in `unit`. */
  readonly buckets?: readonly number[];
}

export const metrics = {
  relight_build_info: {
    type: "gauge",
    unit: "none",
    labels: ["version", "node"],
    about: "Always 1; the labels name the versions of Relight and of Node.",
  },
  relight_boots_total: {
    type: "counter",
    unit: "boots",
    labels: ["outcome", "code", "trust"],
    about:
      "Starts of replicas reported to this coordinator: warm, partial or cold; `code` is `none` or a row of docs/errors.md; `trust` is `closed`, or `insecure` where nobody asked for signatures.",
  },
  relight_ep_ranks: {
    type: "gauge",
    unit: "ranks",
    labels: ["group"],
    about: "Ranks that take part in steps of an expert group.",
  },
  relight_ep_epoch: {
    type: "gauge",
    unit: "none",
    labels: ["group"],
    about: "The number of the group's present membership.",
  },
  relight_ep_deaths_total: {
    type: "counter",
    unit: "ranks",
    labels: ["group", "ended"],
    about:
      "Ranks that went without being asked to; `ended` is exited, hung_up, silent or suspected.",
  },
  relight_ep_operations_total: {
    type: "counter",
    unit: "operations",
    labels: ["group", "kind", "phase"],
    about: "Ended operations on expert groups; `phase` is done or aborted.",
  },
  relight_ep_operation_duration_ms: {
    type: "histogram",
    unit: "ms",
    labels: ["group", "kind"],
    about: "From an operation's beginning to its end.",
    buckets: [10, 50, 100, 250, 500, 1_000, 5_000, 30_000, 120_000, 600_000],
  },
  relight_weights_total: {
    type: "counter",
    unit: "parts",
    labels: ["outcome", "code"],
    about:
      "Parts of models that engines of reported boots hold: `loaded` from a live replica, or `cold`; `code` is `none` or a row of docs/errors.md.",
  },
  relight_coordinator_calls_total: {
    type: "counter",
    unit: "calls",
    labels: ["method", "code"],
    about: "Finished unary calls; `code` is `ok` or a row of docs/errors.md.",
  },
  relight_coordinator_call_duration_ms: {
    type: "histogram",
    unit: "ms",
    labels: ["method"],
    about: "From a call's arrival to its answer.",
    buckets: [0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1_000, 5_000],
  },
  relight_coordinator_strangers_total: {
    type: "counter",
    unit: "connections",
    labels: [],
    about:
      "TLS connections ended unheard: too many at once, too many handshakes in one second, or one that failed.",
  },
  relight_coordinator_sources: {
    type: "gauge",
    unit: "records",
    labels: [],
    about: "Records that the coordinator knows, live or stale.",
  },
  relight_coordinator_sessions: {
    type: "gauge",
    unit: "sessions",
    labels: [],
    about: "Live sessions of agents.",
  },
  relight_coordinator_sessions_lost_total: {
    type: "counter",
    unit: "sessions",
    labels: [],
    about: "Sessions that ended by silence.",
  },
  relight_coordinator_sources_stale_total: {
    type: "counter",
    unit: "records",
    labels: [],
    about: "Records marked stale because nothing was heard of them.",
  },
  relight_coordinator_sources_removed_total: {
    type: "counter",
    unit: "records",
    labels: [],
    about: "Stale records removed by age.",
  },
  relight_coordinator_advance_failures_total: {
    type: "counter",
    unit: "rounds",
    labels: [],
    about: "Rounds of the deadline queue in which the store failed.",
  },
} as const satisfies Record<string, MetricFacts>;

export type MetricTable = Readonly<Record<string, MetricFacts>>;

type NameOf<Table extends MetricTable, Type> = {
  [Name in keyof Table & string]: Table[Name]["type"] extends Type ? Name : never;
}[keyof Table & string];

/** All of a metric's labels, none missing. */
type Labels<Table extends MetricTable, Name extends keyof Table> = {
  readonly [Label in Table[Name]["labels"][number]]: string;
};

/** The metrics of one process or of one test; nothing is global. */
export class Metrics<Table extends MetricTable = typeof metrics> {
  readonly #registry = new Registry();
  readonly #series = new Map<string, Counter | Gauge | Histogram>();

  constructor(table: Table) {
    for (const [name, facts] of Object.entries(table)) {
      this.#series.set(name, make(name, facts, this.#registry));
    }
  }

  /** Adds `by` to a counter. */
  count<Name extends NameOf<Table, "counter">>(
    name: Name,
    labels: Labels<Table, Name>,
    by = 1,
  ): void {
    const series = this.#series.get(name);
    assert(series instanceof Counter, `${name} is a counter`);
    series.inc({ ...labels }, by);
  }

  set<Name extends NameOf<Table, "gauge">>(
    name: Name,
    labels: Labels<Table, Name>,
    value: number,
  ): void {
    const series = this.#series.get(name);
    assert(series instanceof Gauge, `${name} is a gauge`);
    series.set({ ...labels }, value);
  }

  observe<Name extends NameOf<Table, "histogram">>(
    name: Name,
    labels: Labels<Table, Name>,
    value: number,
  ): void {
    const series = this.#series.get(name);
    assert(series instanceof Histogram, `${name} is a histogram`);
    series.observe({ ...labels }, value);
  }

  /** Memory, CPU and event-loop numbers of this process as well. */
  includeProcess(): void {
    collectDefaultMetrics({ register: this.#registry });
  }

  /** The page that Prometheus reads. */
  render(): Promise<string> {
    return this.#registry.metrics();
  }

  get contentType(): string {
    return this.#registry.contentType;
  }
}

function make(name: string, facts: MetricFacts, registry: Registry): Counter | Gauge | Histogram {
  const options = {
    name,
    help: facts.about,
    labelNames: [...facts.labels],
    registers: [registry],
  };
  if (facts.type === "counter") return new Counter(options);
  if (facts.type === "gauge") return new Gauge(options);
  return new Histogram({ ...options, ...(facts.buckets && { buckets: [...facts.buckets] }) });
}
