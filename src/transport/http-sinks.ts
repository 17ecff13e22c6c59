// SPDX-License-Identifier: Apache-2.0
// What the fetcher does with a response: a small body is gathered, a response with pieces is verified
// and written piece by piece. Nothing here believes a length that the source names.

import { RelightError } from "../errors.ts";
import type { BodySink } from "./http-connection.ts";
import { frameBytes, readFrame } from "./http-frame.ts";
import type { ResponseHead } from "./http-head.ts";
import { PieceIntake, type StagedPiece } from "./staged-piece.ts";
import type { Finishing } from "./transport.ts";

/** Gathers a body of at most `bytesMax`. Memory grows with what has arrived, not with what is announced. */
export class GatherSink implements BodySink {
  readonly wantedBytes = 0;
  readonly #bytesMax: number;
  #bytes = Buffer.alloc(0);
  #length = 0;
  #announced = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get result(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }

  head(head: ResponseHead): void {
    expectOk(head);
    if (head.contentLength > this.#bytesMax) {
      refuse(`it has ${head.contentLength} bytes, want at most ${this.#bytesMax}`);
    }
    this.#announced = head.contentLength;
  }

  body(bytes: Buffer): number {
    const needed = this.#length + bytes.length;
    if (needed > this.#bytes.length) {
      const grown = Buffer.allocUnsafeSlow(Math.min(this.#announced, Math.max(needed * 2, 65_536)));
      this.#bytes.copy(grown, 0, 0, this.#length);
      this.#bytes = grown;
    }
    bytes.copy(this.#bytes, this.#length);
    this.#length = needed;
    return bytes.length;
  }

  end(): void {}
}

/** Takes pieces in the order in which they were asked for. */
export class PieceSink implements BodySink {
  readonly #wanted: readonly StagedPiece[];
  readonly #onVerified: (pieces: readonly StagedPiece[]) => void;
  readonly refused: number[] = [];
  #next = 0;
  #partBytes = frameBytes;
  readonly #intake: PieceIntake;

  /** `onVerified` is told once for each run of bytes, also before a failure. */
  constructor(
    wanted: readonly StagedPiece[],
    onVerified: (pieces: readonly StagedPiece[]) => void,
    finishing: Finishing | null = null,
  ) {
    this.#wanted = wanted;
    this.#intake = new PieceIntake(finishing);
    this.#onVerified = onVerified;
  }

  get wantedBytes(): number {
    return this.#partBytes;
  }

  head(head: ResponseHead): void {
    expectOk(head);
    let bytesMax = 0;
    for (const { length } of this.#wanted) bytesMax += frameBytes + length;
    const bytesMin = this.#wanted.length * frameBytes;
    if (head.contentLength > bytesMax || head.contentLength < bytesMin) {
      refuse(`it has ${head.contentLength} bytes, want ${bytesMax}`);
    }
  }

  body(bytes: Buffer): number {
    const verified: StagedPiece[] = [];
    try {
      for (let at = 0; ; ) {
        const end = this.#part(bytes, at, verified);
        if (end === at) return at;
        at = end;
      }
    } finally {
      if (verified.length > 0) this.#onVerified(verified);
    }
  }

  end(): void {
    if (this.#next !== this.#wanted.length) {
      refuse(`it has ${this.#next} pieces, want ${this.#wanted.length}`);
    }
  }

  /** Takes the frame at `at` with its piece. @returns where the next one begins; `at` while it is incomplete. */
  #part(bytes: Buffer, at: number, verified: StagedPiece[]): number {
    this.#partBytes = frameBytes;
    const begin = at + frameBytes;
    if (bytes.length < begin) return at;
    const frame = readFrame(bytes, at);
    const wanted = this.#wanted[this.#next];
    if (wanted === undefined || frame.piece !== wanted.piece) {
      return refuse(`got piece ${frame.piece}, want ${wanted?.piece ?? "none"}`);
    }
    const isFitting = frame.length === wanted.length || (frame.isRefused && frame.length === 0);
    if (!isFitting) refuse(`piece ${frame.piece} has ${frame.length} bytes, want ${wanted.length}`);
    const end = begin + frame.length;
    if (bytes.length < end) {
      this.#partBytes = frameBytes + frame.length;
      if (!frame.isRefused) this.#intake.arrived(bytes, begin);
      return at;
    }
    this.#next++;
    if (frame.isRefused) {
      this.refused.push(frame.piece);
    } else {
      this.#intake.accept(bytes.subarray(begin, end), wanted);
      verified.push(wanted);
    }
    return end;
  }
}

function expectOk({ status, retryAfterMs }: ResponseHead): void {
  if (status === 200) return;
  if (status === 503) {
    throw new RelightError(
      "source_busy",
      "Cannot read from the source now: it serves all it admits",
      {
        details: { retryAfterMs: retryAfterMs ?? 1_000 },
      },
    );
  }
  if (status === 404 || status === 410) {
    throw new RelightError("source_gone", `Cannot read from the source: it answers ${status}`);
  }
  refuse(`its status is ${status}`);
}

function refuse(reason: string): never {
  throw new RelightError("source_protocol", `Cannot accept the source's response: ${reason}`);
}
