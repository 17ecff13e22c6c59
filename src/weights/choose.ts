// SPDX-License-Identifier: Apache-2.0
// Which transport brings the bytes: the fastest that both sides have. Pure: peer.ts asks and acts.

import { RelightError } from "../errors.ts";
import type { TransportName } from "./carrier.ts";

export interface TransportFacts {
  /** `auto`, or the only one that will do. */
  readonly wanted: TransportName | "auto";
  /** The source handed over memory that this process can map: both are on one machine. */
  readonly hasHandles: boolean;
  /** What is missing for NCCL on either side, or `null`. */
  readonly ncclMissing: string | null;
  /** What is missing for HTTP on either side, or `null`. */
  readonly httpMissing: string | null;
}

export interface TransportChoice {
  readonly transport: TransportName;
  /** Why not those that would have been faster: one sentence each. */
  readonly reasons: readonly string[];
}

/** Copies through memory beat messages, and messages between GPUs beat the way through the hosts. */
const fastestFirst: readonly TransportName[] = ["cuda-ipc", "nccl", "http"];

/** @throws transport_unavailable */
export function chooseTransport(facts: TransportFacts): TransportChoice {
  const missing: Readonly<Record<TransportName, string | null>> = {
    "cuda-ipc": facts.hasHandles ? null : "the source is not on this machine",
    nccl: facts.ncclMissing,
    http: facts.httpMissing,
  };
  const candidates = facts.wanted === "auto" ? fastestFirst : [facts.wanted];
  const reasons: string[] = [];
  for (const transport of candidates) {
    const why = missing[transport];
    if (why === null) return { transport, reasons };
    reasons.push(`${transport}: ${why}`);
  }
  throw new RelightError(
    "transport_unavailable",
    `Cannot bring weights from this source: ${reasons.join("; ")}`,
  );
}
