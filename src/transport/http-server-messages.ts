// SPDX-License-Identifier: Apache-2.0
// What the server's threads say to each other, and the counters they share.

import type { Hex32 } from "../core/digest.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import type { PackedFiles, PackedOffer } from "./offer-table.ts";
import type { ServerLimits, ServerStats } from "./transport.ts";
import type { PlainError } from "./worker.ts";

export interface ServerWorkerData {
  readonly host: string;
  readonly port: number;
  readonly limits: ServerLimits;
  readonly counters: SharedArrayBuffer;
  /** What is shown to targets, who must show theirs; null on loopback. */
  readonly tls: TlsMaterial | null;
}

export type ToServer =
  | { readonly type: "offer"; readonly sequence: number; readonly offer: PackedOffer }
  | {
      readonly type: "relocate";
      readonly sequence: number;
      readonly artifactId: Hex32;
      readonly files: PackedFiles;
    }
  | { readonly type: "withdraw"; readonly sequence: number; readonly artifactId: Hex32 }
  | { readonly type: "renew"; readonly sequence: number; readonly tls: TlsMaterial };

export type FromServer =
  | { readonly type: "listening"; readonly port: number }
  | { readonly type: "failed"; readonly error: PlainError }
  | { readonly type: "done"; readonly sequence: number }
  | { readonly type: "changed"; readonly artifactId: Hex32; readonly fileIndex: number };

/** Counters over all threads of one server. */
export class ServerCounters {
  readonly #cells: BigInt64Array;

  constructor(buffer: SharedArrayBuffer) {
    this.#cells = new BigInt64Array(buffer);
  }

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer(4 * 8);
  }

  /** One more reader, unless `max` are there; counts the refusal then. */
  admit(max: number): boolean {
    const before = Number(Atomics.add(this.#cells, 0, 1n));
    if (before < max) return true;
    this.release();
    Atomics.add(this.#cells, 2, 1n);
    return false;
  }

  release(): void {
    Atomics.sub(this.#cells, 0, 1n);
  }

  sent(bytes: number): void {
    Atomics.add(this.#cells, 1, BigInt(bytes));
  }

  /** A connection that was ended before it could ask for anything, or a handshake that came to nothing. */
  strangerRefused(): void {
    Atomics.add(this.#cells, 3, 1n);
  }

  read(): ServerStats {
    const cell = (index: number) => Number(Atomics.load(this.#cells, index));
    return { readers: cell(0), bytesSent: cell(1), refused: cell(2), strangers: cell(3) };
  }
}
