// SPDX-License-Identifier: Apache-2.0
// What the suite tells a hostile peer: for each source, what to publish and what to answer.

import { identityOf, mergeFacts } from "../../src/artifacts/identity.ts";
import { customFamily } from "../../src/artifacts/kinds/custom.ts";

export const model = "attacked/model";

export type StatementAnswer =
  | { readonly kind: "bytes" | "extra_body"; readonly base64: string }
  | { readonly kind: "huge"; readonly bytes: number }
  | { readonly kind: "missing" | "drip" | "endless_head" | "chunked" | "silent" };

export interface HostileSource {
  /** A cache of its own for each attack, so that one start of the target meets them all. */
  readonly family: string;
  readonly artifactId: string;
  /** As it claims. */
  readonly totalBytes: number;
  readonly statement: StatementAnswer;
  /** Base64, as are the pieces. */
  readonly manifest: string;
  readonly pieces: readonly string[];
  /** Frames carry another piece's number. */
  readonly isMislabelled: boolean;
}

/** PEM. */
export interface Shown {
  readonly key: string;
  readonly certificate: string;
}

export interface HostilePlan {
  /** Where it publishes like any replica; null when somebody else names it to targets. */
  readonly coordinator: string | null;
  /** What it shows of itself; null for plaintext. */
  readonly tls: Shown | null;
  readonly sources: readonly HostileSource[];
}

/** What a hostile coordinator names to whoever looks for a family, in this order. */
export interface ListedSource {
  readonly family: string;
  readonly artifactId: string;
  readonly totalBytes: number;
  readonly endpoint: string;
  /** Whom it tells the target to expect there. */
  readonly identity: string;
  /** How many times over. */
  readonly times: number;
}

export interface CoordinatorPlan {
  readonly tls: Shown | null;
  readonly listed: readonly ListedSource[];
  readonly find: "list" | "silent" | "one_too_few" | "endless" | "garbage";
  /** Envelopes that each session is told of, in base64. */
  readonly policies: readonly string[];
  /** Then this many bytes of nonsense in a policy's place, again and again. */
  readonly floodBytes: number;
  /** What whoever enrols is given, in base64; null refuses. */
  readonly enrol: {
    readonly certificate: string;
    readonly authorities: readonly string[];
    readonly policy: string;
  } | null;
}

/** The one line that either prints when it listens. */
export interface Listening {
  readonly endpoints: readonly string[];
}

/** The identity that the target computes for a cache given by hand. */
export function identityFor(family: string) {
  const machine = process.arch === "x64" ? "x86_64" : "aarch64";
  return identityOf(customFamily(family, "/"), mergeFacts({ machine, model }), {});
}
