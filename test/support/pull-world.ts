// SPDX-License-Identifier: Apache-2.0
// A pull in virtual time: the production state machine against sources that are slow, busy, partial,
// wrong or gone. One thread, no clock; a seed decides everything.

import assert from "node:assert/strict";
import { reportOf, step } from "../../src/artifacts/pull.ts";
import type { PullEffect, PullEvent } from "../../src/artifacts/pull-events.ts";
import {
  createPull,
  type Pull,
  type PullOutcome,
  pullSettings,
} from "../../src/artifacts/pull-state.ts";
import { PieceSet } from "../../src/core/pieces.ts";
import type { Code } from "../../src/errors.ts";
import { generator } from "./tree.ts";

/** How a source behaves. */
export interface Behaviour {
  readonly bytesPerMs: number;
  /** Pieces it has at the beginning; all when absent. */
  readonly has?: (piece: number) => boolean;
  /** Gains everything at this time. */
  readonly completeMs?: number;
  /** Fails every request after this many pieces in all. */
  readonly failsAfter?: { readonly pieces: number; readonly code: Code };
  /** Turns away this many requests first. */
  readonly busyTimes?: number;
}

export interface WorldResult {
  readonly outcome: PullOutcome | null;
  readonly pull: Pull;
  readonly elapsedMs: number;
  /** How often each piece was verified. */
  readonly verified: readonly number[];
  /** Requests by source, in order. */
  readonly requests: ReadonlyMap<string, readonly (readonly number[])[]>;
  /** Times at which each source was asked for pieces. */
  readonly askedMs: ReadonlyMap<string, readonly number[]>;
}

interface Scheduled {
  readonly atMs: number;
  readonly order: number;
  readonly batch: number | null;
  readonly event: PullEvent;
}

const stepsMax = 20_000;

export function playPull(options: {
  lengths: readonly number[];
  sources: Readonly<Record<string, Behaviour>>;
  seed?: number;
  /** When each source is found; at once when absent. */
  foundMs?: Readonly<Record<string, number>>;
}): WorldResult {
  return new World(options).play();
}

class World {
  readonly #pull: Pull;
  readonly #sources: Readonly<Record<string, Behaviour>>;
  readonly #served = new Map<string, number>();
  readonly #turnedAway = new Map<string, number>();
  readonly #verified: number[];
  readonly #requests = new Map<string, (readonly number[])[]>();
  readonly #askedMs = new Map<string, number[]>();
  readonly #running = new Set<number>();
  #queue: Scheduled[] = [];
  #order = 0;
  #nowMs = 0;
  #outcome: PullOutcome | null = null;

  constructor({ lengths, sources, seed = 1, foundMs = {} }: Parameters<typeof playPull>[0]) {
    const random = generator(seed);
    this.#sources = sources;
    this.#verified = lengths.map(() => 0);
    this.#pull = createPull({
      pieces: lengths.map((length) => ({ length })),
      settings: pullSettings,
      random: () => random() / 2 ** 32,
      nowMs: 0,
    });
    for (const [endpoint, { has }] of Object.entries(sources)) {
      const event = { type: "source_found", endpoint, isComplete: has === undefined } as const;
      this.#schedule(foundMs[endpoint] ?? 0, null, event);
    }
  }

  play(): WorldResult {
    for (let steps = 0; this.#outcome === null; steps++) {
      assert.ok(steps < stepsMax, "the pull goes on for ever");
      const next = this.#takeNext();
      if (next === null) break;
      this.#nowMs = next.atMs;
      this.#tell(next.event);
    }
    return {
      outcome: this.#outcome,
      pull: this.#pull,
      elapsedMs: this.#nowMs,
      verified: this.#verified,
      requests: this.#requests,
      askedMs: this.#askedMs,
    };
  }

  /** The next event, or a tick where the pull wants to be woken before. */
  #takeNext(): Scheduled | null {
    this.#queue.sort((left, right) => left.atMs - right.atMs || left.order - right.order);
    const [first] = this.#queue;
    const { wakeMs } = this.#pull;
    if (wakeMs !== null && (first === undefined || wakeMs < first.atMs)) {
      return { atMs: wakeMs, order: 0, batch: null, event: { type: "tick" } };
    }
    this.#queue.shift();
    return first ?? null;
  }

  #tell(event: PullEvent): void {
    if (event.type === "pieces_verified") {
      for (const piece of event.pieces) this.#verified[piece] = (this.#verified[piece] ?? 0) + 1;
    }
    if (event.type === "batch_done" || event.type === "batch_failed") {
      this.#running.delete(event.batch);
    }
    for (const effect of step(this.#pull, event, this.#nowMs)) this.#perform(effect);
  }

  #perform(effect: PullEffect): void {
    switch (effect.type) {
      case "fetch":
        this.#fetch(effect);
        break;
      case "cancel":
        this.#cancel(effect.batch);
        break;
      case "ask_have":
        this.#askHave(effect.endpoint);
        break;
      case "finish":
        this.#outcome = effect.outcome;
    }
  }

  #fetch({ batch, endpoint, pieces }: PullEffect & { type: "fetch" }): void {
    const source = this.#behaviour(endpoint);
    push(this.#requests, endpoint, pieces);
    push(this.#askedMs, endpoint, this.#nowMs);
    this.#running.add(batch);
    const away = this.#turnedAway.get(endpoint) ?? 0;
    if (away < (source.busyTimes ?? 0)) {
      this.#turnedAway.set(endpoint, away + 1);
      this.#fail({ atMs: this.#nowMs + 1, batch, code: "source_busy" });
      return;
    }
    let atMs = this.#nowMs;
    const refused: number[] = [];
    for (const piece of pieces) {
      if (!this.#has(source, piece)) {
        refused.push(piece);
        continue;
      }
      const served = this.#served.get(endpoint) ?? 0;
      atMs += (this.#pull.lengths[piece] ?? 0) / source.bytesPerMs;
      if (source.failsAfter !== undefined && served >= source.failsAfter.pieces) {
        this.#fail({ atMs: atMs + 1, batch, code: source.failsAfter.code });
        return;
      }
      this.#served.set(endpoint, served + 1);
      this.#schedule(atMs, batch, { type: "pieces_verified", batch, pieces: [piece] });
    }
    this.#schedule(atMs, batch, { type: "batch_done", batch, refused });
  }

  #cancel(batch: number): void {
    assert.ok(this.#running.has(batch), "only a batch under way is cancelled");
    this.#queue = this.#queue.filter((scheduled) => scheduled.batch !== batch);
    this.#fail({ atMs: this.#nowMs + 1, batch, code: "cancelled" });
  }

  #askHave(endpoint: string): void {
    const source = this.#behaviour(endpoint);
    const have = new PieceSet(this.#pull.lengths.length);
    for (let piece = 0; piece < have.size; piece++) if (this.#has(source, piece)) have.add(piece);
    this.#schedule(this.#nowMs + 1, null, { type: "have_known", endpoint, have });
  }

  #fail({ atMs, batch, code }: { atMs: number; batch: number; code: Code }): void {
    const retryAfterMs = code === "source_busy" ? 1_000 : null;
    const failure = { code, message: `Cannot go on: ${code}`, retryAfterMs };
    this.#schedule(atMs, batch, { type: "batch_failed", batch, failure });
  }

  #has({ has, completeMs }: Behaviour, piece: number): boolean {
    return (
      has === undefined || has(piece) || (completeMs !== undefined && this.#nowMs >= completeMs)
    );
  }

  #behaviour(endpoint: string): Behaviour {
    const behaviour = this.#sources[endpoint];
    assert.ok(behaviour !== undefined, `the pull asks ${endpoint}, which nobody named`);
    return behaviour;
  }

  #schedule(atMs: number, batch: number | null, event: PullEvent): void {
    this.#queue.push({ atMs, order: this.#order++, batch, event });
  }
}

/** Sums that must agree whatever happened. */
export function assertConsistent({ pull, verified }: WorldResult): void {
  const report = reportOf(pull);
  assert.ok(Math.max(0, ...verified) <= 1, "a verified piece was fetched again");
  assert.equal(report.pieces, verified.filter((times) => times === 1).length);
  assert.equal(report.pieces + report.piecesLeft, verified.length);
  const total = pull.lengths.reduce((sum, length) => sum + length, 0);
  assert.equal(report.bytes + report.bytesLeft, total);
}

function push<Value>(map: Map<string, Value[]>, key: string, value: Value): void {
  const list = map.get(key) ?? [];
  list.push(value);
  map.set(key, list);
}
