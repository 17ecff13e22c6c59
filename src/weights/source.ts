// SPDX-License-Identifier: Apache-2.0
// The port to a source of weights: what it offers, the right to read it, and how its bytes come. One that
// is still loading offers as well: it has what it has verified, and says as it gets more.

import type { Carrier, CarrierTarget } from "./carrier.ts";
import type { WeightManifest } from "./manifest.ts";

export interface WeightSource {
  /** For logs and failures, and the address at which it is found again. */
  readonly name: string;

  /** @throws source_unreachable, no_source (nothing for this coordinate), source_protocol */
  offer(coordinateKey: string, signal: AbortSignal): Promise<WeightManifest>;

  /**
   * @throws source_unreachable, source_gone, source_protocol, generation_changed, and source_busy, whose
   *   details may name others that have the same (`readers`, one address a line)
   */
  claim(coordinateKey: string, want: ClaimWant, signal: AbortSignal): Promise<SourceLease>;
}

export interface ClaimWant {
  readonly generation: number;
  readonly ttlMs: number;
  /** Where the reader itself can be read as it verifies; `null` when it cannot. */
  readonly address: string | null;
}

/** The right to read one generation. Disposing gives it back; the source's end notices a dead reader. */
export interface SourceLease extends AsyncDisposable {
  /** False while the source is itself still loading: then `have` says what can be read. */
  readonly isComplete: boolean;
  /** What the source wants this reader to keep to; Infinity for no limit. */
  readonly bytesPerSecondMax: number;

  /** @throws device_unsupported, device_memory, source_unreachable, deadline_exceeded */
  open(target: CarrierTarget, signal: AbortSignal): Promise<Carrier>;

  /** @throws generation_changed, source_gone, source_unreachable */
  renew(ttlMs: number, signal: AbortSignal): Promise<{ readonly bytesPerSecondMax: number }>;

  /**
   * Resolves when the source has more than `known` tensors, has all, or has waited for a while.
   * @throws no_source when it has given up; source_unreachable
   */
  have(known: number, signal: AbortSignal): Promise<Have>;
}

export interface Have {
  readonly isComplete: boolean;
  readonly count: number;
  /** By index of the source's manifest. */
  readonly includes: (tensor: number) => boolean;
}

export const haveAll: Have = { isComplete: true, count: 0, includes: () => true };

/** One bit for each tensor, the lowest of a byte first. */
export function packHave(tensors: ReadonlySet<number>): string {
  let last = -1;
  for (const tensor of tensors) last = Math.max(last, tensor);
  const bits = Buffer.alloc((last >> 3) + 1);
  for (const tensor of tensors) {
    const at = tensor >> 3;
    bits[at] = (bits[at] ?? 0) | (1 << (tensor & 7));
  }
  return bits.toString("base64");
}

export function unpackHave(isComplete: boolean, packed: string): Have {
  const bits = Buffer.from(packed, "base64");
  let count = 0;
  for (const byte of bits) for (let rest = byte; rest > 0; rest &= rest - 1) count += 1;
  const includes = (tensor: number) => ((bits[tensor >> 3] ?? 0) & (1 << (tensor & 7))) !== 0;
  return { isComplete, count, includes };
}
