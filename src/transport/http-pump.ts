// SPDX-License-Identifier: Apache-2.0
// Sends pieces or a span of a file as the body of one response: two pooled buffers, one being filled
// while the other is on its way. Memory does not depend on what is sent, and a reader that does not
// read is noticed by the buffer that does not leave.

import fs from "node:fs";
import type { ServerResponse } from "node:http";
import type { BufferPool } from "./buffer-pool.ts";
import { frameBytes, writeFrame } from "./http-frame.ts";
import type { FileFacts } from "./offer-table.ts";
import { openOffered, readFully } from "./offered-file.ts";

/** A run of bytes of one file, with a frame in front of it when it is a piece among others. */
export interface Segment {
  readonly frame: number | null;
  readonly fileIndex: number;
  readonly offset: number;
  readonly length: number;
  /** Known beforehand: sent as a refusal without filler. */
  readonly isRefused: boolean;
}

export interface PumpSource {
  /** The file as it is now known; asked for at each opening, because staging can become final. */
  file(fileIndex: number): FileFacts;
  /** The file is no longer what was sealed. */
  lost(fileIndex: number): void;
}

/** How many bytes the body has. Exact, whatever happens while it is sent. */
export function bodyBytes(segments: readonly Segment[]): number {
  let bytes = 0;
  for (const { frame, length, isRefused } of segments) {
    bytes += (frame === null ? 0 : frameBytes) + (isRefused ? 0 : length);
  }
  return bytes;
}

/** What the open segment is read from; `bad` sends filler. */
type Origin = { readonly handle: number } | { readonly inline: Buffer } | "bad";

export class Pump {
  readonly #response: ServerResponse;
  readonly #segments: readonly Segment[];
  readonly #source: PumpSource;
  readonly #pool: BufferPool;
  readonly #onSent: (bytes: number) => void;
  #next = 0;
  #origin: Origin | null = null;
  /** Bytes of the current segment already placed. */
  #done = 0;
  #inFlight = 0;
  #oldestWriteMs = 0;
  #isOver = false;

  constructor(options: {
    response: ServerResponse;
    segments: readonly Segment[];
    source: PumpSource;
    pool: BufferPool;
    onSent: (bytes: number) => void;
  }) {
    this.#response = options.response;
    this.#segments = options.segments;
    this.#source = options.source;
    this.#pool = options.pool;
    this.#onSent = options.onSent;
  }

  /** When the oldest write that has not left began; null when none is waiting. */
  get waitingSinceMs(): number | null {
    return this.#inFlight > 0 ? this.#oldestWriteMs : null;
  }

  start(): void {
    this.#fill();
  }

  /** The connection is gone. Buffers go back when their writes have ended. */
  stop(): void {
    this.#isOver = true;
    this.#closeOrigin();
  }

  #fill(): void {
    while (!this.#isOver && this.#inFlight < 2) {
      if (this.#next >= this.#segments.length) {
        this.#isOver = true;
        this.#response.end();
        return;
      }
      const buffer = this.#pool.take();
      const bytes = this.#place(buffer);
      if (bytes === null) {
        // A file shrank below a frame already sent: the promised length can not be kept.
        this.#pool.give(buffer);
        this.stop();
        this.#response.destroy();
        return;
      }
      this.#send(buffer, bytes);
    }
  }

  #send(buffer: Buffer, bytes: number): void {
    if (this.#inFlight === 0) this.#oldestWriteMs = performance.now();
    this.#inFlight++;
    this.#response.write(buffer.subarray(0, bytes), (error) => {
      this.#inFlight--;
      this.#oldestWriteMs = performance.now();
      this.#pool.give(buffer);
      if (error) this.stop();
      else this.#onSent(bytes);
      this.#fill();
    });
  }

  /** Fills the buffer as far as segments reach; null when a promise can not be kept. */
  #place(buffer: Buffer): number | null {
    let at = 0;
    for (let segment = this.#segments[this.#next]; segment !== undefined; ) {
      if (this.#origin === null && this.#done === 0) {
        if (buffer.length - at < frameBytes) break;
        at = this.#begin(buffer, at, segment);
        // Without a frame there is no way to say that the bytes are filler.
        if (segment.frame === null && this.#origin === "bad") return null;
      }
      const length = segment.isRefused ? 0 : segment.length;
      const room = Math.min(buffer.length - at, length - this.#done);
      if (!this.#copy(buffer, { at, segment, length: room })) return null;
      at += room;
      this.#done += room;
      if (this.#done < length) break;
      this.#closeOrigin();
      this.#done = 0;
      this.#next++;
      segment = this.#segments[this.#next];
    }
    return at;
  }

  /** Opens the segment's file and writes its frame, a refusal when the file is not as sealed. */
  #begin(buffer: Buffer, at: number, segment: Segment): number {
    this.#origin = segment.isRefused ? "bad" : this.#open(segment.fileIndex);
    if (segment.frame === null) return at;
    const isRefused = this.#origin === "bad";
    const length = segment.isRefused ? 0 : segment.length;
    writeFrame(buffer, at, { piece: segment.frame, length, isRefused });
    return at + frameBytes;
  }

  #open(fileIndex: number): Origin {
    const file = this.#source.file(fileIndex);
    if (file.inline !== null) return { inline: file.inline };
    const handle = openOffered(file);
    if (handle !== null) return { handle };
    this.#source.lost(fileIndex);
    return "bad";
  }

  #copy(
    buffer: Buffer,
    { at, segment, length }: { at: number; segment: Segment; length: number },
  ): boolean {
    const origin = this.#origin;
    if (length === 0 || origin === null) return true;
    if (origin === "bad") {
      buffer.fill(0, at, at + length);
      return true;
    }
    const offset = segment.offset + this.#done;
    if ("inline" in origin) {
      origin.inline.copy(buffer, at, offset, offset + length);
      return true;
    }
    if (readFully(origin.handle, buffer, { at, offset, length })) return true;
    this.#source.lost(segment.fileIndex);
    return this.#refuseInPlace(buffer, { at, segment, length });
  }

  /** The frame still lies in this buffer, so that it can be turned into a refusal. */
  #refuseInPlace(
    buffer: Buffer,
    { at, segment, length }: { at: number; segment: Segment; length: number },
  ): boolean {
    if (segment.frame === null || this.#done > 0) return false;
    writeFrame(buffer, at - frameBytes, {
      piece: segment.frame,
      length: segment.length,
      isRefused: true,
    });
    buffer.fill(0, at, at + length);
    this.#closeOrigin();
    this.#origin = "bad";
    return true;
  }

  #closeOrigin(): void {
    if (this.#origin !== null && typeof this.#origin === "object" && "handle" in this.#origin) {
      fs.closeSync(this.#origin.handle);
    }
    this.#origin = null;
  }
}
