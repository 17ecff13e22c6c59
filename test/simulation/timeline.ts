// SPDX-License-Identifier: Apache-2.0
// Virtual time: a heap of events, one thread. After each event everything that it set in motion runs
// until it waits for time or for another event, so that one seed gives one history.

import type { Clock } from "../../src/platform/clock.ts";
import { generator } from "../support/tree.ts";

export interface Timer {
  cancel(): void;
}

interface Scheduled {
  readonly atMs: number;
  readonly order: number;
  act: (() => void) | null;
}

/** Unix milliseconds at which every simulation begins. */
const epochMs = 1_800_000_000_000;

export class Timeline {
  nowMs = 0;
  events = 0;
  readonly #heap: Scheduled[] = [];
  #order = 0;

  get wallMs(): number {
    return epochMs + this.nowMs;
  }

  at(atMs: number, act: () => void): Timer {
    const scheduled: Scheduled = { atMs: Math.max(atMs, this.nowMs), order: this.#order++, act };
    this.#push(scheduled);
    return {
      cancel: () => {
        scheduled.act = null;
      },
    };
  }

  after(ms: number, act: () => void): Timer {
    return this.at(this.nowMs + ms, act);
  }

  /** Plays until `isDone`, or `untilMs` has come; false when it was not done then. */
  async run(untilMs: number, isDone: () => boolean): Promise<boolean> {
    while (!isDone()) {
      const next = this.#pop();
      if (next === undefined || next.atMs > untilMs) {
        if (next !== undefined) this.#push(next);
        this.nowMs = Math.max(this.nowMs, untilMs);
        return isDone();
      }
      if (next.act === null) continue;
      this.nowMs = next.atMs;
      this.events++;
      next.act();
      await settled();
    }
    return true;
  }

  #push(item: Scheduled): void {
    const heap = this.#heap;
    let at = heap.push(item) - 1;
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      const above = heap[parent];
      if (above === undefined || !isBefore(item, above)) break;
      heap[at] = above;
      at = parent;
    }
    heap[at] = item;
  }

  #pop(): Scheduled | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      let below = heap[child];
      if (below === undefined) break;
      const right = heap[child + 1];
      if (right !== undefined && isBefore(right, below)) {
        child++;
        below = right;
      }
      if (!isBefore(below, last)) break;
      heap[at] = below;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(left: Scheduled, right: Scheduled): boolean {
  return left.atMs < right.atMs || (left.atMs === right.atMs && left.order < right.order);
}

/** A turn of the event loop comes only when no promise is left to continue. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * One process of a simulated node: what it waits for arrives while it runs, is kept back while it is
 * frozen, and never arrives once it has been killed.
 */
export class Process {
  readonly #timeline: Timeline;
  #backlog: (() => void)[] = [];
  isAlive = true;
  isFrozen = false;
  /** How far this node's wall clock is off. */
  wallSkewMs = 0;

  constructor(timeline: Timeline) {
    this.#timeline = timeline;
  }

  readonly clock: Clock = {
    wallMs: () => this.#timeline.wallMs + this.wallSkewMs,
    monotonicMs: () => this.#timeline.nowMs,
    sleep: (ms, signal) => this.#sleep(ms, signal),
  };

  deliver(act: () => void): void {
    if (!this.isAlive) return;
    if (this.isFrozen) this.#backlog.push(act);
    else act();
  }

  after(ms: number, act: () => void): Timer {
    return this.#timeline.after(ms, () => this.deliver(act));
  }

  freeze(): void {
    this.isFrozen = true;
  }

  thaw(): void {
    this.isFrozen = false;
    for (const act of this.#backlog.splice(0)) this.deliver(act);
  }

  kill(): void {
    this.isAlive = false;
    this.#backlog = [];
  }

  #sleep(ms: number, signal: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    if (signal.aborted) {
      reject(signal.reason);
      return promise;
    }
    const timer = this.after(ms, () => {
      signal.removeEventListener("abort", abort);
      resolve();
    });
    const abort = () => {
      timer.cancel();
      reject(signal.reason);
    };
    signal.addEventListener("abort", abort, { once: true });
    return promise;
  }
}

/** The one source of chance of a simulation. */
export class Chance {
  readonly #next: () => number;

  constructor(seed: number) {
    this.#next = generator(seed);
  }

  /** In [0, 1). */
  readonly random = (): number => this.#next() / 2 ** 32;

  between(low: number, high: number): number {
    return low + (high - low) * this.random();
  }

  below(count: number): number {
    return Math.floor(this.random() * count);
  }

  is(probability: number): boolean {
    return probability > 0 && this.random() < probability;
  }

  pick<Value>(values: readonly Value[]): Value | undefined {
    return values[this.below(values.length)];
  }
}
