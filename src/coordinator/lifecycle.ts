// SPDX-License-Identifier: Apache-2.0
// A record's life: initializing, ready, stale, removed. Pure: a record, an event and a time give the
// next record. The rule that matters: a worker's own STALE is final until it publishes again, so a
// READY that was still on its way when the worker stopped changes nothing.

import type { SourceHead, SourceStatus } from "../store/store.ts";

export interface LifecycleLimits {
  /** Silence after which an active record turns stale. */
  readonly heartbeatTimeoutMs: number;
  /** Age at which a stale record is removed. */
  readonly staleRetentionMs: number;
}

export const lifecycleDefaults: LifecycleLimits = {
  heartbeatTimeoutMs: 90_000,
  staleRetentionMs: 3_600_000,
};

/** Someone's word about a record. */
export type Word =
  | { readonly type: "status"; readonly status: SourceStatus }
  | { readonly type: "session_lost" }
  | { readonly type: "withdrawn" };

export type Verdict =
  | { readonly type: "write"; readonly head: SourceHead }
  | { readonly type: "keep" }
  | { readonly type: "refuse"; readonly reason: string };

export function hear(head: SourceHead, word: Word, now: number): Verdict {
  switch (word.type) {
    case "status":
      return hearStatus(head, word.status, now);
    case "session_lost":
      return head.status === "stale" ? keep : write(stale(head, "session", now));
    case "withdrawn":
      return head.staleBy === "request" ? keep : write(stale(head, "request", now));
  }
}

function hearStatus(head: SourceHead, status: SourceStatus, now: number): Verdict {
  if (status === "stale") return write(stale(head, "request", now));
  if (head.staleBy === "request") {
    return {
      type: "refuse",
      reason: `the worker said STALE; publish again to be ${status.toUpperCase()}`,
    };
  }
  return write({ ...head, status, staleBy: null, updatedAtMs: now });
}

export type Due =
  | { readonly type: "wait"; readonly untilMs: number }
  | { readonly type: "write"; readonly head: SourceHead }
  | { readonly type: "remove" };

/** When a record was last vouched for and last written, neither later than now. */
export interface Ages {
  /** The last word, of its session or its own; minus infinity when its session has ended. */
  readonly heardMs: number;
  readonly writtenMs: number;
}

/** What a record's deadline asks for. */
export function due(head: SourceHead, ages: Ages, now: number, limits: LifecycleLimits): Due {
  const untilMs = deadlineOf(head, ages, limits);
  if (now <= untilMs) return { type: "wait", untilMs };
  return head.status === "stale" ? { type: "remove" } : write(stale(head, "timeout", now));
}

export function deadlineOf(head: SourceHead, ages: Ages, limits: LifecycleLimits): number {
  return head.status === "stale"
    ? ages.writtenMs + limits.staleRetentionMs
    : ages.heardMs + limits.heartbeatTimeoutMs;
}

const keep = { type: "keep" } as const;

function write(head: SourceHead): { readonly type: "write"; readonly head: SourceHead } {
  return { type: "write", head };
}

function stale(
  head: SourceHead,
  staleBy: "request" | "timeout" | "session",
  now: number,
): SourceHead {
  return { ...head, status: "stale", staleBy, updatedAtMs: now };
}
