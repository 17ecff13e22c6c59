// SPDX-License-Identifier: Apache-2.0
// The boot ledger: what one start of a replica did, phase by phase and cache by cache. `Ledger` is the
// record under construction; the finished record is plain JSON, the same for the CLI and the coordinator.

import { randomBytes } from "node:crypto";
import type { Hits } from "../artifacts/hits.ts";
import { asRelightError, type Code } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { TrustSummary } from "./trust.ts";

export const bootFormat = "relight.boot.v1";

export interface Phase {
  readonly name: string;
  /** Milliseconds since the boot began. */
  readonly startMs: number;
  endMs: number | null;
  code: Code | null;
  detail: string | null;
}

export interface SourceUse {
  readonly endpoint: string;
  readonly bytes: number;
  readonly pieces: number;
  /** How often it failed, by code. */
  readonly failures: Readonly<Partial<Record<Code, number>>>;
  /** Why it was given up; null when it was used to the end. */
  readonly code: Code | null;
}

export type CacheState = "installed" | "present" | "cold";

export interface CacheRecord {
  readonly family: string;
  readonly root: string;
  state: CacheState;
  code: Code | null;
  reason: string | null;
  artifactId: string | null;
  /** Earlier installations that were taken back at this start, and why. */
  undone: { artifactId: string; files: number; code: Code }[];
  /** Files that peers have. */
  offered: number;
  /** Of these, the target had already. */
  alreadyThere: number;
  fetched: number;
  fetchedBytes: number;
  /** Left by an attempt that did not end, looked at again and used. */
  resumedBytes: number;
  /** Compiled by the target while they were fetched; the target's own stay. */
  kept: number;
  retries: number;
  sources: SourceUse[];
  hits: Hits | null;
  published: { artifactId: string; files: number; bytes: number } | null;
}

/** Of one part of the model, as one worker of the engine asked for it. */
export interface WeightRecord {
  /** Role and ranks. */
  readonly part: string;
  /** `loading`: from live replicas, under way. `cold`: the engine has them from elsewhere. */
  state: "loading" | "loaded" | "cold";
  code: Code | null;
  reason: string | null;
  tensors: number;
  bytes: number;
  /** Copying and verifying; null when nothing was copied. */
  copyMs: number | null;
  /** Names the values, whoever they came from; null when they came from no live replica. */
  content: string | null;
  /** Which gave verified tensors, in order, and how they came from each. */
  sources: string[];
  transports: string[];
  /** Which did not, and why. */
  failures: { source: string; code: Code; message: string }[];
  /** GPU memory that the agent took meanwhile; null when it could not be read. */
  costBytes: number | null;
  /** What others could read here at last; null when nothing. */
  offered: { content: string; generation: number } | null;
}

export interface BootRecord {
  readonly format: typeof bootFormat;
  readonly bootId: string;
  readonly nodeId: string;
  /** What the user said, else what the command says; empty when neither does. */
  model: string;
  /** The command's program, without its arguments: they may hold secrets. */
  readonly program: string;
  /** Under which rules peers' caches were installed; null in records of older versions. */
  readonly trust: TrustSummary | null;
  /** Unix milliseconds. */
  readonly startedAtMs: number;
  /** From the start until the engine was started, and until it was healthy; null when it never was. */
  engineStartedMs: number | null;
  healthyMs: number | null;
  exitCode: number | null;
  /** Facts that no probe and no setting could tell. */
  unknownFacts: string[];
  /** Why the whole boot is cold, when it is not one cache's reason. */
  code: Code | null;
  reason: string | null;
  readonly phases: Phase[];
  readonly caches: CacheRecord[];
  readonly weights: WeightRecord[];
}

export class Ledger {
  readonly record: BootRecord;
  readonly #clock: Clock;
  readonly #startMs: number;

  constructor(options: {
    clock: Clock;
    nodeId: string;
    model: string;
    program: string;
    trust?: TrustSummary;
  }) {
    this.#clock = options.clock;
    this.#startMs = options.clock.monotonicMs();
    const startedAtMs = options.clock.wallMs();
    this.record = {
      format: bootFormat,
      // Sorts by time of start.
      bootId: `${startedAtMs.toString(36).padStart(9, "0")}-${randomBytes(4).toString("hex")}`,
      nodeId: options.nodeId,
      model: options.model,
      program: options.program,
      trust: options.trust ?? null,
      startedAtMs,
      engineStartedMs: null,
      healthyMs: null,
      exitCode: null,
      unknownFacts: [],
      code: null,
      reason: null,
      phases: [],
      caches: [],
      weights: [],
    };
  }

  elapsedMs(): number {
    return Math.round(this.#clock.monotonicMs() - this.#startMs);
  }

  /** Runs `work` as a phase: its time and its failure are recorded, and the failure goes on. */
  async phase<T>(name: string, work: () => Promise<T> | T): Promise<T> {
    const phase = this.startPhase(name);
    try {
      return await work();
    } catch (thrown) {
      const error = asRelightError(thrown);
      phase.code = error.code;
      phase.detail = error.message;
      throw thrown;
    } finally {
      phase.endMs = this.elapsedMs();
    }
  }

  startPhase(name: string): Phase {
    const phase: Phase = { name, startMs: this.elapsedMs(), endMs: null, code: null, detail: null };
    this.record.phases.push(phase);
    return phase;
  }

  cache(family: string, root: string): CacheRecord {
    const cache: CacheRecord = {
      family,
      root,
      state: "cold",
      code: null,
      reason: null,
      artifactId: null,
      undone: [],
      offered: 0,
      alreadyThere: 0,
      fetched: 0,
      fetchedBytes: 0,
      resumedBytes: 0,
      kept: 0,
      retries: 0,
      sources: [],
      hits: null,
      published: null,
    };
    this.record.caches.push(cache);
    return cache;
  }

  weights(part: string): WeightRecord {
    const known = this.record.weights.find((one) => one.part === part);
    if (known !== undefined) return known;
    const weights: WeightRecord = {
      part,
      state: "cold",
      code: null,
      reason: null,
      tensors: 0,
      bytes: 0,
      copyMs: null,
      content: null,
      sources: [],
      transports: [],
      failures: [],
      costBytes: null,
      offered: null,
    };
    this.record.weights.push(weights);
    return weights;
  }

  /** Records why something starts cold, in the cache when it is one cache's reason. */
  cold(where: Pick<CacheRecord, "code" | "reason">, thrown: unknown): void {
    const error = asRelightError(thrown);
    where.code = error.code;
    where.reason = error.message;
  }
}

/** Warm: everything that peers had was taken from them. Partial: some of it. Cold: nothing. */
export function outcomeOf(record: BootRecord): "warm" | "partial" | "cold" {
  const isCold = (one: { state: string }) => one.state === "cold" || one.state === "loading";
  // What an engine never asked peers for is neither.
  const weights = record.weights.filter((one) => one.state !== "cold" || one.code !== null);
  const all = [...record.caches, ...weights];
  if (all.every(isCold)) return "cold";
  return all.some((one) => isCold(one) && one.code !== "no_source") ? "partial" : "warm";
}

/** Why the boot, or else the first part of it that is not warm, is not; null when nothing is. */
export function firstCodeOf({ code, caches, weights }: BootRecord): Code | null {
  return code ?? [...caches, ...weights].find((one) => one.code !== null)?.code ?? null;
}
