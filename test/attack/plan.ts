// SPDX-License-Identifier: Apache-2.0
// What the suite tells a hostile peer: for each source, what to publish and what to answer.

import { identityOf, mergeFacts } from "../../src/artifacts/identity.ts";
import { customFamily } from "../../src/artifacts/kinds/custom.ts";

export const model = "attacked/model";

export type StatementAnswer =
  | { readonly kind: "bytes" | "extra_body"; readonly base64: string }
  | { readonly kind: "huge"; readonly bytes: number }
  /** Entries of a manifest, made while they are sent, behind a length that is true or fits the limit. */
  | { readonly kind: "entries"; readonly count: number; readonly announcedBytes: number | null }
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

/** One thing that a hostile client does; it reports what it was answered. */
export type Step = { readonly name: string } & (
  | {
      readonly kind: "call";
      /** Whose certificate it shows, of the plan's; null for none. */
      readonly as: string | null;
      readonly bearer?: string;
      readonly service: "relight" | "p2p";
      readonly method: string;
      /** In protobuf's JSON. */
      readonly request: unknown;
      /** How many times at once; 1 when absent. */
      readonly times?: number;
    }
  | { readonly kind: "session"; readonly as: string | null; readonly sessionId: string }
  /** Wrong bearer tokens, each another. */
  | { readonly kind: "guess_bearers"; readonly count: number }
  | {
      /** What no HTTP/2 library would send. */
      readonly kind: "frames";
      readonly as: string;
      readonly what: "streams" | "resets" | "continuations" | "pings";
    }
  | { readonly kind: "message"; readonly as: string; readonly what: "announced" | "bomb" }
  /** Bytes to the piece server behind TLS. */
  | { readonly kind: "bytes"; readonly as: string | null; readonly request: string }
  /** Slowly, a byte at a time and without end: a handshake to the coordinator, a head to the source. */
  | { readonly kind: "drip"; readonly at: "coordinator" | "source"; readonly as: string | null }
  /** Connections that begin a handshake and go no further. */
  | { readonly kind: "half_open"; readonly count: number }
);

export interface ClientPlan {
  /** host:port each. */
  readonly coordinator: string;
  readonly source: string;
  /** PEM of the fleet's authority, so that only the other side has a reason to refuse. */
  readonly authority: string;
  readonly shown: Readonly<Record<string, Shown>>;
  readonly steps: readonly Step[];
}

/** A line of a hostile client: every different answer that a step got, and how often. */
export interface Answered {
  readonly name: string;
  readonly answers: Readonly<Record<string, number>>;
}
