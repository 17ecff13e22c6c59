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
