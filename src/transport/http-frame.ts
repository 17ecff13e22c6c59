// SPDX-License-Identifier: Apache-2.0
// The frame in front of each piece in a response with several: piece number and length, 32 bits each,
// big-endian. The highest bit of the length marks a piece that the source refuses; what then follows
// is filler, so that the response's Content-Length stays exact whatever is noticed on the way.

export const frameBytes = 8;

const refusedBit = 0x8000_0000;

export interface Frame {
  readonly piece: number;
  /** Bytes that follow: the piece, or filler. */
  readonly length: number;
  readonly isRefused: boolean;
}

export function writeFrame(into: Buffer, at: number, frame: Frame): void {
  into.writeUInt32BE(frame.piece, at);
  into.writeUInt32BE((frame.isRefused ? frame.length | refusedBit : frame.length) >>> 0, at + 4);
}

/** Any 8 bytes are a frame; the reader compares it with what it asked for. */
export function readFrame(from: Buffer, at: number): Frame {
  const word = from.readUInt32BE(at + 4);
  return {
    piece: from.readUInt32BE(at),
    length: word & ~refusedBit,
    isRefused: (word & refusedBit) !== 0,
  };
}
