// SPDX-License-Identifier: Apache-2.0
// What a target has and what it does next, when sources answer, fail, change or lie. Pure: pull.ts acts.
// The rule that everything follows from: all tensors of a finished pull verified against one content.

import type { Code } from "../errors.ts";

export interface PullFailure {
  readonly source: string;
  readonly code: Code;
  readonly message: string;
}

export interface PullProgress {
  /** How many tensors the target has. */
  readonly tensorCount: number;
  /** The values that are being assembled (`contentId`); `null` until a source offers some. */
  readonly content: string | null;
  /** The content was demanded from outside: no source may change it. */
  readonly isPinned: boolean;
  /** Verified tensors, by index. */
  readonly verified: ReadonlySet<number>;
  /** How often the present source may change its weights before it counts as failed. */
  readonly restartsLeft: number;
  readonly failures: readonly PullFailure[];
}

export type PullEvent =
  | { readonly type: "offered"; readonly source: string; readonly content: string }
  | { readonly type: "verified"; readonly tensors: readonly number[] }
  /** Everything that the source has was copied; `failure` says which tensors arrived wrong. */
  | { readonly type: "copied"; readonly failure: PullFailure | null }
  | { readonly type: "generation_changed"; readonly failure: PullFailure }
  | { readonly type: "failed"; readonly failure: PullFailure };

/** `copy`: from the present source. `again`: ask it anew. `next`: turn to another source. */
export type PullStep = "copy" | "again" | "next" | "done";

const restartsMax = 3;

export function startPull(tensorCount: number, content: string | null): PullProgress {
  return {
    tensorCount,
    content,
    isPinned: content !== null,
    verified: new Set(),
    restartsLeft: restartsMax,
    failures: [],
  };
}

export function step(progress: PullProgress, event: PullEvent): [PullProgress, PullStep] {
  switch (event.type) {
    case "offered":
      return offered(progress, event);
    case "verified": {
      const verified = progress.verified.union(new Set(event.tensors));
      return [{ ...progress, verified }, verified.size === progress.tensorCount ? "done" : "copy"];
    }
    case "copied":
      if (progress.verified.size === progress.tensorCount) return [progress, "done"];
      return [event.failure === null ? progress : failed(progress, event.failure), "next"];
    case "generation_changed":
      return generationChanged(progress, event.failure);
    case "failed":
      return [failed(progress, event.failure), "next"];
  }
}

function offered(
  progress: PullProgress,
  { source, content }: { readonly source: string; readonly content: string },
): [PullProgress, PullStep] {
  if (progress.content === content) return [progress, "copy"];
  if (!progress.isPinned) {
    // Another set of values: what was verified against the old one is of no use to the new one.
    return [{ ...progress, content, verified: new Set() }, "copy"];
  }
  const failure = {
    source,
    code: "digest_mismatch",
    message: `Cannot take weights: their content is ${content}, wanted ${progress.content}`,
  } as const;
  return [failed(progress, failure), "next"];
}

/** The very source that we read from has other values now; old tensors have no source any more. */
function generationChanged(progress: PullProgress, failure: PullFailure): [PullProgress, PullStep] {
  if (progress.restartsLeft === 0) return [failed(progress, failure), "next"];
  const restartsLeft = progress.restartsLeft - 1;
  return [{ ...progress, restartsLeft }, "again"];
}

function failed(progress: PullProgress, failure: PullFailure): PullProgress {
  const failures = [...progress.failures, failure];
  return { ...progress, failures, restartsLeft: restartsMax };
}
