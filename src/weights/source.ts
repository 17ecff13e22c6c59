// SPDX-License-Identifier: Apache-2.0
// The port to a source of weights on the same machine: what it offers, and the right to read its memory.
// transport/cuda-ipc.ts is one; whoever implements it moves handles, never weights.

import type { MemoryHandle } from "../gpu/driver.ts";
import type { WeightManifest } from "./manifest.ts";

export interface WeightSource {
  /** For logs and failures. */
  readonly name: string;

  /** @throws source_unreachable, no_source (nothing for this coordinate), source_protocol */
  offer(coordinateKey: string, signal: AbortSignal): Promise<WeightManifest>;

  /** @throws source_unreachable, source_busy, generation_changed, source_gone, source_protocol */
  claim(
    coordinateKey: string,
    want: { readonly generation: number; readonly ttlMs: number },
    signal: AbortSignal,
  ): Promise<SourceLease>;
}

/** The right to read one generation. Disposing gives it back; the source's end notices a dead reader. */
export interface SourceLease extends AsyncDisposable {
  /** By allocation of the manifest. Descriptors are closed with the lease. */
  readonly handles: readonly MemoryHandle[];

  /** @throws generation_changed, source_gone, source_unreachable */
  renew(ttlMs: number, signal: AbortSignal): Promise<void>;
}
