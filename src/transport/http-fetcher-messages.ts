// SPDX-License-Identifier: Apache-2.0
// What the fetcher's threads say to each other.

import type { TlsMaterial } from "../trust/tls-material.ts";
import type { FetchLimits, SourceAddress } from "./transport.ts";
import type { PlainError } from "./worker.ts";

export interface FetcherWorkerData {
  readonly limits: FetchLimits;
  /** What we show to sources; null where every source is on loopback. */
  readonly tls: TlsMaterial | null;
}

/** Columns instead of objects: an order of a thousand pieces crosses threads as a few values. */
export interface PackedOrder {
  readonly pieces: readonly number[];
  /** Separated by NUL, which no path holds: one string crosses faster than a thousand. */
  readonly paths: string;
  /** In hex, one after the other. */
  readonly digests: string;
  /** For each piece: the file's bytes, mode, offset, length, position in the staging. */
  readonly numbers: Float64Array<ArrayBuffer>;
  readonly root: string;
  readonly have: SharedArrayBuffer;
  readonly haveSize: number;
  readonly finishing: PackedFinishing | null;
}

export interface PackedFinishing {
  readonly accessMs: number;
  readonly modifiedMs: number;
  readonly finished: SharedArrayBuffer;
  readonly finishedSize: number;
}

export type ToFetcher =
  | {
      readonly type: "gather";
      readonly id: number;
      readonly at: SourceAddress;
      readonly what: "manifest" | "statement" | "have";
      readonly bytesMax: number;
    }
  | {
      readonly type: "pieces";
      readonly id: number;
      readonly at: SourceAddress;
      readonly order: PackedOrder;
    }
  | { readonly type: "cancel"; readonly id: number }
  | { readonly type: "renew"; readonly tls: TlsMaterial };

export type FromFetcher =
  | { readonly type: "gathered"; readonly id: number; readonly bytes: Uint8Array }
  | { readonly type: "verified"; readonly id: number; readonly pieces: readonly number[] }
  | {
      readonly type: "fetched";
      readonly id: number;
      readonly bytes: number;
      readonly refused: readonly number[];
    }
  | { readonly type: "failed"; readonly id: number; readonly error: PlainError };
