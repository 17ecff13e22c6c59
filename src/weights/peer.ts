// SPDX-License-Identifier: Apache-2.0
// A source in another process, over a link that carries calls and memory handles. Every call has a
// deadline, for a peer that accepts and never answers must cost seconds, not a start.

import { z } from "zod";
import { asRelightError, RelightError } from "../errors.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import { startDeadline } from "../platform/deadline.ts";
import { parseManifest, type WeightManifest } from "./manifest.ts";
import type { SourceLease, WeightSource } from "./source.ts";

/** What transport/cuda-ipc.ts gives: one connection, one call at a time. */
export interface HandleLink extends Disposable {
  call(
    call: {
      readonly op: string;
      readonly args: unknown;
      readonly handles: readonly MemoryHandle[];
    },
    signal: AbortSignal,
  ): Promise<{ readonly value: unknown; readonly handles: readonly MemoryHandle[] }>;
}

export interface PeerOptions {
  readonly name: string;
  /** @throws source_unreachable */
  readonly connect: () => HandleLink;
  readonly callMsMax: number;
}

const leaseReply = z.strictObject({ lease: z.number().int().min(1) });

export class PeerSource implements WeightSource, Disposable {
  readonly name: string;
  readonly #options: PeerOptions;
  #link: HandleLink | null = null;

  constructor(options: PeerOptions) {
    this.name = options.name;
    this.#options = options;
  }

  async offer(key: string, signal: AbortSignal): Promise<WeightManifest> {
    const { value } = await this.#call("offer", { key }, signal);
    return parseManifest(value);
  }

  async claim(
    key: string,
    want: { readonly generation: number; readonly ttlMs: number },
    signal: AbortSignal,
  ): Promise<SourceLease> {
    const { value, handles } = await this.#call("claim", { key, ...want }, signal);
    const reply = leaseReply.safeParse(value);
    if (!reply.success) {
      throw new RelightError("source_protocol", `Cannot read the lease of "${this.name}"`);
    }
    const { lease } = reply.data;
    return {
      handles,
      renew: async (ttlMs, within) => {
        await this.#call("renew", { key, lease, ttlMs }, within);
      },
      [Symbol.asyncDispose]: async () => {
        const never = new AbortController().signal;
        // A source that is gone has nothing left to give back.
        await this.#call("release", { key, lease }, never).catch(() => undefined);
      },
    };
  }

  [Symbol.dispose](): void {
    this.#link?.[Symbol.dispose]();
    this.#link = null;
  }

  async #call(op: string, args: object, signal: AbortSignal) {
    using deadline = startDeadline(`the call "${op}"`, this.#options.callMsMax, signal);
    try {
      this.#link ??= this.#options.connect();
      return await this.#link.call({ op, args, handles: [] }, deadline.signal);
    } catch (cause) {
      const error = asRelightError(cause);
      const isLost = error.code === "cancelled" || error.code === "source_unreachable";
      // An answer may still be under way; the next call must not take it for its own.
      if (isLost || error.code === "source_protocol") this[Symbol.dispose]();
      if (error.code !== "cancelled" || signal.aborted) throw error;
      throw new RelightError(
        "source_stalled",
        `Cannot use "${this.name}": it has not answered "${op}" in ${this.#options.callMsMax} ms`,
        { cause },
      );
    }
  }
}
