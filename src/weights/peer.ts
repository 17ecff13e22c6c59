// SPDX-License-Identifier: Apache-2.0
// A source in another process, over a link that carries calls, and memory handles where both are on one
// machine. Every call has a deadline, for a peer that accepts and never answers must cost seconds, not a
// start. How the bytes come is chosen when a lease is opened.

import { z } from "zod";
import { asRelightError, RelightError } from "../errors.ts";
import type { ContextHandle, MemoryHandle, PairHandle } from "../gpu/driver.ts";
import { startDeadline } from "../platform/deadline.ts";
import { type Carrier, type CarrierTarget, mappedCarrier, type TransportName } from "./carrier.ts";
import { chooseTransport, type TransportChoice } from "./choose.ts";
import { parseManifest, type WeightManifest } from "./manifest.ts";
import { pairedCarrier } from "./paired-carrier.ts";
import {
  type ClaimWant,
  type Have,
  type SourceLease,
  unpackHave,
  type WeightSource,
} from "./source.ts";
import { sourceFailure } from "./source-failure.ts";
import { type RangeLink, type SourceRange, stagedCarrier } from "./staged-carrier.ts";

/** What transport/cuda-ipc.ts and transport/weights-http-client.ts give: one connection to an agent. */
export interface PeerLink extends Disposable {
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
  readonly connect: () => PeerLink;
  readonly callMsMax: number;
  /** `auto`, when not given. */
  readonly transport?: TransportName | "auto";
  /** Reads ranges at an endpoint that a source has named; not given where this agent does not. */
  readonly openRanges?: (endpoint: string) => RangeLink & Disposable;
}

const bytesPerSecondMax = z.number().positive().nullable();
const leaseReply = z.strictObject({
  lease: z.number().int().min(1),
  token: z.string().regex(/^[0-9a-f]{32}$/),
  isComplete: z.boolean(),
  bytesPerSecondMax,
});
const renewReply = z.object({ bytesPerSecondMax });
const haveReply = z.strictObject({ isComplete: z.boolean(), tensors: z.string().max(2 ** 17) });
const waysReply = z.strictObject({
  http: z.string().max(1_024).nullable(),
  ncclMissing: z.string().max(1_024).nullable(),
});

/** A pair is opened once for a stay and a source, for meeting takes about a second. */
interface OpenedPair {
  readonly context: ContextHandle;
  readonly id: string;
  readonly pair: PairHandle;
}

export class PeerSource implements WeightSource, Disposable {
  readonly name: string;
  readonly #options: PeerOptions;
  #link: PeerLink | null = null;
  #ranges: (RangeLink & Disposable) | null = null;
  #pair: OpenedPair | null = null;

  constructor(options: PeerOptions) {
    this.name = options.name;
    this.#options = options;
  }

  async offer(key: string, signal: AbortSignal): Promise<WeightManifest> {
    const { value } = await this.#call("offer", { key }, signal);
    return parseManifest(value);
  }

  async claim(key: string, want: ClaimWant, signal: AbortSignal): Promise<SourceLease> {
    const { value, handles } = await this.#call("claim", { key, ...want }, signal);
    const granted = this.#read(leaseReply, value, "lease");
    const { lease, token } = granted;
    return {
      isComplete: granted.isComplete,
      bytesPerSecondMax: granted.bytesPerSecondMax ?? Number.POSITIVE_INFINITY,
      open: (target, within) => this.#open({ handles, token }, target, within),
      renew: async (ttlMs, within) => {
        const renewed = await this.#call("renew", { key, lease, ttlMs }, within);
        const told = this.#read(renewReply, renewed.value, "lease");
        return { bytesPerSecondMax: told.bytesPerSecondMax ?? Number.POSITIVE_INFINITY };
      },
      have: (known, within) => this.#have({ key, lease, known }, within),
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
    this.#ranges?.[Symbol.dispose]();
    this.#ranges = null;
  }

  async #have(
    args: { readonly key: string; readonly lease: number; readonly known: number },
    signal: AbortSignal,
  ): Promise<Have> {
    const { value } = await this.#call("have", args, signal);
    const { isComplete, tensors } = this.#read(haveReply, value, "tensors");
    return unpackHave(isComplete, tensors);
  }

  async #open(
    lease: { readonly handles: readonly MemoryHandle[]; readonly token: string },
    target: CarrierTarget,
    signal: AbortSignal,
  ): Promise<Carrier> {
    const { choice, endpoint } = await this.#choose(lease.handles.length > 0, target, signal);
    switch (choice.transport) {
      case "cuda-ipc":
        return mappedCarrier(target, lease.handles);
      case "http":
        this.#ranges ??= this.#options.openRanges?.(endpoint) ?? null;
        if (this.#ranges === null) throw new TypeError("HTTP was chosen where nobody reads it");
        return await stagedCarrier(named(this.name, this.#ranges), target, lease.token);
      case "nccl": {
        const { id, pair } = await this.#meet(lease.token, target, signal);
        const send = async (ranges: readonly SourceRange[], within: AbortSignal) => {
          const packed = ranges.map((one) => [one.allocation, one.offsetBytes, one.bytes]);
          await this.#call("send", { token: lease.token, pair: id, ranges: packed }, within);
        };
        const onAbandoned = () => {
          this.#pair = null;
        };
        return pairedCarrier(target.driver, { pair, link: { send }, onAbandoned });
      }
    }
  }

  async #choose(
    hasHandles: boolean,
    { driver }: CarrierTarget,
    signal: AbortSignal,
  ): Promise<{ readonly choice: TransportChoice; readonly endpoint: string }> {
    const wanted = this.#options.transport ?? "auto";
    if (hasHandles && (wanted === "auto" || wanted === "cuda-ipc")) {
      return { choice: { transport: "cuda-ipc", reasons: [] }, endpoint: "" };
    }
    const { value } = await this.#call("ways", {}, signal);
    const there = this.#read(waysReply, value, "ways");
    const ncclHere = await driver.pairId().then(
      () => null,
      (error: unknown) => asRelightError(error).message,
    );
    const noHttp = this.#options.openRanges === undefined ? "this agent does not read it" : null;
    const choice = chooseTransport({
      wanted,
      hasHandles,
      ncclMissing: ncclHere ?? there.ncclMissing,
      httpMissing: noHttp ?? (there.http === null ? "the source does not serve it" : null),
    });
    return { choice, endpoint: there.http ?? "" };
  }

  async #meet(
    token: string,
    { driver, stay }: CarrierTarget,
    signal: AbortSignal,
  ): Promise<OpenedPair> {
    if (this.#pair !== null && this.#pair.context === stay.context) return this.#pair;
    const id = await driver.pairId();
    const name = Buffer.from(id).toString("hex");
    const wait = { signal, deadlineMs: this.#options.callMsMax };
    const meeting = { id, rank: 1 } as const;
    const [pair] = await Promise.all([
      driver.openPair(stay.context, meeting, wait),
      this.#call("pair", { token, id: name }, signal),
    ]);
    this.#pair = { context: stay.context, id: name, pair };
    return this.#pair;
  }

  #read<Schema extends z.ZodType>(schema: Schema, value: unknown, what: string): z.infer<Schema> {
    const read = schema.safeParse(value);
    if (read.success) return read.data;
    throw new RelightError("source_protocol", `Cannot read the ${what} of "${this.name}"`);
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
      if (isLost || error.code === "source_protocol") this.#hangUp();
      if (error.code !== "cancelled" || signal.aborted) throw sourceFailure(this.name, error);
      throw new RelightError(
        "source_stalled",
        `Cannot use "${this.name}": it has not answered "${op}" in ${this.#options.callMsMax} ms`,
        { cause },
      );
    }
  }

  #hangUp(): void {
    this.#link?.[Symbol.dispose]();
    this.#link = null;
  }
}

/** The same ranges; what goes wrong with them is the source's. */
function named(name: string, ranges: RangeLink): RangeLink {
  return {
    requestsMax: ranges.requestsMax,
    read: (request, signal) =>
      ranges.read(request, signal).catch((cause: unknown) => {
        throw sourceFailure(name, cause);
      }),
  };
}
