// SPDX-License-Identifier: Apache-2.0
// Sends pieces or a span of a file as the body of one response: two pooled buffers, one being filled
// while the other is on its way. Memory does not depend on what is sent, and a reader that does not
// read is noticed by the buffer that does not leave. On a plain socket a long run of a file goes from the
// disk to the socket without passing through here, as far as the socket takes it; what it does not take
// goes through a buffer, whose leaving tells when to go on.

import fs from "node:fs";
import type { ServerResponse } from "node:http";
import { KiB, MiB } from "../core/units.ts";
import type { SocketSender } from "../platform/socket-sender.ts";
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

/** Shorter runs are cheaper to copy into a buffer with their frames than to send one by one. */
const directBytesMin = 64 * KiB;
/** Through Node where bytes can go directly: only to learn when the socket takes more. */
const waitBytes = 64 * KiB;
/** What one reader is sent before this thread looks at the others. */
const directTurnBytesMax = 4 * MiB;

export class Pump {
  readonly #response: ServerResponse;
  readonly #segments: readonly Segment[];
  readonly #source: PumpSource;
  readonly #pool: BufferPool;
  readonly #sender: SocketSender | null;
  readonly #fillBytes: number;
  readonly #onSent: (bytes: number) => void;
  #next = 0;
  #origin: Origin | null = null;
  /** Bytes of the current segment already placed. */
  #done = 0;
  #inFlight = 0;
  /** When the socket began to take the buffer's worth of bytes that it is taking now, and what it has taken of it. */
  #windowMs = 0;
  #windowBytes = 0;
  #isOver = false;

  constructor(options: {
    response: ServerResponse;
    segments: readonly Segment[];
    source: PumpSource;
    pool: BufferPool;
    /** Null where bytes must pass through Node: behind TLS, or without an FFI package. */
    sender: SocketSender | null;
    onSent: (bytes: number) => void;
  }) {
    this.#response = options.response;
    this.#segments = options.segments;
    this.#source = options.source;
    this.#pool = options.pool;
    this.#sender = options.sender;
    this.#fillBytes = options.sender === null ? options.pool.bufferBytes : waitBytes;
    this.#onSent = options.onSent;
  }

  /** Since when the reader has not taken `bufferBytes`; null when nothing is waiting for it. */
  get waitingSinceMs(): number | null {
    return this.#inFlight > 0 ? this.#windowMs : null;
  }

  start(): void {
    this.#windowMs = performance.now();
    this.#fill();
  }

  /** The connection is gone. Buffers go back when their writes have ended. */
  stop(): void {
    this.#isOver = true;
    this.#closeOrigin();
  }

  #fill(): void {
    // Past Node's stream only while it holds nothing of ours, or bytes would overtake each other.
    const inFlightMax = this.#sender === null ? 2 : 1;
    while (!this.#isOver && this.#inFlight < inFlightMax) {
      if (this.#next >= this.#segments.length) {
        this.#isOver = true;
        this.#response.end();
        return;
      }
      const buffer = this.#pool.take();
      const bytes = this.#place(buffer.subarray(0, this.#fillBytes), false);
      if (bytes === null) {
        this.#pool.give(buffer);
        this.#breakPromise();
        return;
      }
      this.#send(buffer, { from: 0, to: bytes });
    }
  }

  #send(buffer: Buffer, { from, to }: { from: number; to: number }): void {
    this.#inFlight++;
    this.#response.write(buffer.subarray(from, to), (error) => {
      this.#inFlight--;
      this.#pool.give(buffer);
      if (error) this.stop();
      else this.#left(to - from);
      if (this.#sender === null) this.#fill();
      else this.#sendDirectly(this.#sender);
    });
  }

  #left(bytes: number): void {
    this.#onSent(bytes);
    this.#windowBytes += bytes;
    // Small writes would let a reader that drips hold its place for longer: only a whole buffer's worth counts.
    if (this.#sender !== null && this.#windowBytes < this.#pool.bufferBytes) return;
    this.#windowBytes = 0;
    this.#windowMs = performance.now();
  }

  /** As much as the socket takes. Ends with a buffer on its way through Node, a later turn, or the end. */
  #sendDirectly(sender: SocketSender): void {
    let turnBytes = 0;
    while (!this.#isOver && this.#next < this.#segments.length) {
      const socket = descriptorOf(this.#response);
      if (socket === null) break;
      if (turnBytes >= directTurnBytesMax) {
        setImmediate(() => this.#sendDirectly(sender));
        return;
      }
      const sent = this.#isDirect
        ? this.#sendFile(sender, socket)
        : this.#sendBuffer(sender, socket);
      if (sent === null) return;
      turnBytes += sent;
      if (sent === 0) break;
    }
    this.#fill();
  }

  /** Whether the rest of the open segment is worth a call of its own. */
  get #isDirect(): boolean {
    const length = this.#segments[this.#next]?.length ?? 0;
    return this.#handle !== null && length - this.#done >= directBytesMin;
  }

  /** A buffer of frames and short runs. @returns what went; null when the rest is on its way or all is over. */
  #sendBuffer(sender: SocketSender, socket: number): number | null {
    const buffer = this.#pool.take();
    const length = this.#place(buffer, true);
    if (length === null) {
      this.#pool.give(buffer);
      this.#breakPromise();
      return null;
    }
    const sent = sender.send(socket, { bytes: buffer, length, hasMore: this.#isDirect });
    if (sent >= 0) this.#left(sent);
    if (sent >= 0 && sent < length) {
      this.#send(buffer, { from: sent, to: length });
      return null;
    }
    this.#pool.give(buffer);
    return sent < 0 ? this.#breakPromise() : sent;
  }

  /** A run of the open segment. @returns what went, 0 when the socket is full; null when all is over. */
  #sendFile(sender: SocketSender, socket: number): number | null {
    const segment = this.#segments[this.#next];
    const handle = this.#handle;
    if (segment === undefined || handle === null) return 0;
    const offset = segment.offset + this.#done;
    const length = Math.min(segment.length - this.#done, directTurnBytesMax);
    const sent = sender.sendFile(socket, handle, { offset, length });
    if (sent < 0) {
      if (sent === -2) this.#source.lost(segment.fileIndex);
      return this.#breakPromise();
    }
    this.#left(sent);
    this.#done += sent;
    if (this.#done === segment.length) this.#endSegment();
    return sent;
  }

  /** The promised length can not be kept: a file shrank below a frame already sent, or nobody reads. */
  #breakPromise(): null {
    this.stop();
    this.#response.destroy();
    return null;
  }

  /**
   * Fills the buffer as far as segments reach; null when a promise can not be kept.
   * @param endsAtRun ends behind the frame of a run that can be sent directly
   */
  #place(buffer: Buffer, endsAtRun: boolean): number | null {
    let at = 0;
    for (let segment = this.#segments[this.#next]; segment !== undefined; ) {
      if (this.#origin === null && this.#done === 0) {
        if (buffer.length - at < frameBytes) break;
        at = this.#begin(buffer, at, segment);
        // Without a frame there is no way to say that the bytes are filler.
        if (segment.frame === null && this.#origin === "bad") return null;
        if (endsAtRun && this.#isDirect) break;
      }
      const length = segment.isRefused ? 0 : segment.length;
      const room = Math.min(buffer.length - at, length - this.#done);
      if (!this.#copy(buffer, { at, segment, length: room })) return null;
      at += room;
      this.#done += room;
      if (this.#done < length) break;
      this.#endSegment();
      segment = this.#segments[this.#next];
    }
    return at;
  }

  #endSegment(): void {
    this.#closeOrigin();
    this.#done = 0;
    this.#next++;
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

  /** Of the open segment's file; null when there is none. */
  get #handle(): number | null {
    const origin = this.#origin;
    return origin !== null && origin !== "bad" && "handle" in origin ? origin.handle : null;
  }

  #closeOrigin(): void {
    if (this.#handle !== null) fs.closeSync(this.#handle);
    this.#origin = null;
  }
}

/**
 * Of a socket that is open; null when it is not, or when Node hides it. Asked for before each use, because a
 * number that was closed soon belongs to another connection.
 */
function descriptorOf({ socket }: ServerResponse): number | null {
  if (socket === null || socket.destroyed) return null;
  // Node has no public way to a connection's descriptor; without this one bytes are copied.
  const { _handle } = socket as unknown as { readonly _handle?: { readonly fd?: number } | null };
  const descriptor = _handle?.fd;
  return descriptor !== undefined && descriptor >= 0 ? descriptor : null;
}
