// SPDX-License-Identifier: Apache-2.0
// Runs a pull: performs the effects of pull.ts with a real fetcher and clock, and feeds back what
// happens. Has no opinion of its own.

import type { Hex32 } from "../core/digest.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { PieceFetcher, Staging } from "../transport/transport.ts";
import { type PullReport, reportOf, step } from "./pull.ts";
import type { Failure, FoundPullSource, PullEffect, PullEvent } from "./pull-events.ts";
import {
  createPull,
  type PieceGroups,
  type Pull,
  type PullOutcome,
  type PullSettings,
} from "./pull-state.ts";

export type PullSource = FoundPullSource;

export interface PullOptions {
  readonly fetcher: PieceFetcher;
  readonly artifactId: Hex32;
  readonly sources: readonly PullSource[];
  /** Asks the coordinator who else has the artifact; absent when nobody can be asked. */
  readonly search?: (signal: AbortSignal) => Promise<readonly PullSource[]>;
  readonly staging: Staging;
  /** Pieces to bring, ascending; all when absent. */
  readonly wanted?: readonly number[];
  /** What comes first; everything at random when absent. */
  readonly order?: PieceGroups;
  readonly settings: PullSettings;
  readonly clock: Clock;
  /** From 0 to 1, as Math.random. */
  readonly random: () => number;
  readonly signal: AbortSignal;
  /** After each group of verified pieces. */
  readonly onProgress?: (report: PullReport) => void;
}

export interface RunningPull {
  /**
   * Settles when nothing of the pull writes any more. Rejects with RelightError `sources_exhausted`,
   * what the own disk answered, or the signal's reason; `report` then still tells what each source did.
   */
  readonly done: Promise<PullReport>;
  readonly report: () => PullReport;
  /** Another source has appeared. */
  readonly found: (source: PullSource) => void;
  /** A source has been withdrawn; what it is sending may still arrive. */
  readonly lost: (endpoint: string) => void;
  /** Something else is wanted first from now on. */
  readonly reorder: (order: PieceGroups) => void;
}

/** Brings pieces into staging, from all sources at once. */
export function startPull(options: PullOptions): RunningPull {
  const shell = new PullShell(options);
  return {
    done: shell.run(),
    report: () => reportOf(shell.pull),
    found: (source) => shell.handle({ type: "source_found", ...source }),
    lost: (endpoint) => shell.handle({ type: "source_lost", endpoint }),
    reorder: (order) => shell.handle({ type: "reordered", order }),
  };
}

class PullShell {
  readonly pull: Pull;
  readonly #options: PullOptions;
  readonly #batches = new Map<number, AbortController>();
  readonly #underWay = new Set<Promise<void>>();
  readonly #outcome = Promise.withResolvers<PullOutcome>();
  /** Ends whatever is under way when the pull ends, for whichever reason. */
  readonly #end = new AbortController();
  #timer: { readonly atMs: number; readonly stop: AbortController } | null = null;

  constructor(options: PullOptions) {
    this.#options = options;
    const { staging, wanted, order, settings, random, clock } = options;
    this.pull = createPull({
      pieces: staging.pieces,
      ...(wanted === undefined ? {} : { wanted }),
      ...(order === undefined ? {} : { order }),
      settings,
      random,
      nowMs: clock.monotonicMs(),
      canSearch: options.search !== undefined,
    });
  }

  async run(): Promise<PullReport> {
    try {
      const outcome = await this.#runToEnd();
      if (outcome.type === "failed") throw new RelightError(outcome.code, outcome.message);
    } finally {
      this.#end.abort(new RelightError("cancelled", "Cannot go on: the pull has ended"));
      await Promise.all(this.#underWay);
    }
    return reportOf(this.pull);
  }

  async #runToEnd(): Promise<PullOutcome> {
    const { signal, sources } = this.#options;
    signal.throwIfAborted();
    if (this.pull.outcome !== null) return this.pull.outcome;
    const abort = () => this.#outcome.reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    try {
      for (const source of sources) this.handle({ type: "source_found", ...source });
      this.handle({ type: "tick" });
      return await this.#outcome.promise;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  handle(event: PullEvent): void {
    if (this.#end.signal.aborted) return;
    for (const effect of step(this.pull, event, this.#options.clock.monotonicMs())) {
      this.#perform(effect);
    }
    this.#schedule();
    if (event.type === "pieces_verified") this.#options.onProgress?.(reportOf(this.pull));
  }

  #perform(effect: PullEffect): void {
    switch (effect.type) {
      case "fetch":
        this.#track(this.#fetch(effect));
        break;
      case "ask_have":
        this.#track(this.#askHave(effect.endpoint));
        break;
      case "search":
        this.#track(this.#search());
        break;
      case "cancel":
        this.#batches
          .get(effect.batch)
          ?.abort(new RelightError("cancelled", "Cannot go on: moved"));
        break;
      case "finish":
        this.#outcome.resolve(effect.outcome);
    }
  }

  async #fetch({ batch, endpoint, pieces }: PullEffect & { type: "fetch" }): Promise<void> {
    const { fetcher, artifactId, staging } = this.#options;
    const stop = new AbortController();
    this.#batches.set(batch, stop);
    try {
      const receipt = await fetcher.pieces(
        { endpoint, artifactId, pieces, into: staging },
        (some) => this.handle({ type: "pieces_verified", batch, pieces: some }),
        AbortSignal.any([stop.signal, this.#end.signal]),
      );
      this.handle({ type: "batch_done", batch, refused: receipt.refused });
    } catch (error) {
      this.handle({ type: "batch_failed", batch, failure: failureOf(error) });
    } finally {
      this.#batches.delete(batch);
    }
  }

  async #askHave(endpoint: string): Promise<void> {
    const { fetcher, artifactId, staging } = this.#options;
    try {
      const at = { endpoint, artifactId };
      const have = await fetcher.have(at, staging.pieces.length, this.#end.signal);
      this.handle({ type: "have_known", endpoint, have });
    } catch (error) {
      this.handle({ type: "have_failed", endpoint, failure: failureOf(error) });
    }
  }

  async #search(): Promise<void> {
    const { search } = this.#options;
    try {
      const sources = (await search?.(this.#end.signal)) ?? [];
      this.handle({ type: "search_done", sources });
    } catch {
      // Whoever searches reports its failure; the pull goes on with what it has and asks again later.
      this.handle({ type: "search_failed" });
    }
  }

  #track(work: Promise<void>): void {
    const tracked = work.finally(() => this.#underWay.delete(tracked));
    this.#underWay.add(tracked);
  }

  /** An early tick does no harm, so that only an earlier time moves the timer. */
  #schedule(): void {
    const { wakeMs } = this.pull;
    if (wakeMs === null || (this.#timer !== null && this.#timer.atMs <= wakeMs)) return;
    this.#timer?.stop.abort();
    const stop = new AbortController();
    this.#timer = { atMs: wakeMs, stop };
    this.#track(this.#sleep(wakeMs, AbortSignal.any([stop.signal, this.#end.signal])));
  }

  async #sleep(untilMs: number, signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    try {
      await clock.sleep(Math.max(0, untilMs - clock.monotonicMs()), signal);
    } catch {
      return; // Only the signal ends a sleep: the pull has ended or an earlier time was set.
    }
    this.#timer = null;
    this.handle({ type: "tick" });
  }
}

function failureOf(thrown: unknown): Failure {
  const { code, message, details } = asRelightError(thrown);
  const { retryAfterMs } = details;
  return { code, message, retryAfterMs: typeof retryAfterMs === "number" ? retryAfterMs : null };
}
