// SPDX-License-Identifier: Apache-2.0
// A response with pieces, in parts of any length: what is accepted is what was asked for, bit by bit,
// and every other stream is refused. Also the frame's own eight bytes.

import assert from "node:assert/strict";
import { blake3Hex } from "../../src/core/digest.ts";
import { RelightError } from "../../src/errors.ts";
import { frameBytes, readFrame, writeFrame } from "../../src/transport/http-frame.ts";
import { PieceSink } from "../../src/transport/http-sinks.ts";
import type { StagedPiece } from "../../src/transport/staged-piece.ts";
import type { FuzzTarget } from "../support/fuzz.ts";

const contents = new Map([
  [3, Buffer.alloc(0)],
  [4, Buffer.from("hello")],
  [9, Buffer.alloc(300, "x")],
]);
// Written to where nothing stays: the checks come before the write, and they are what is tried here.
const wanted: readonly StagedPiece[] = [...contents].map(([piece, bytes]) => ({
  piece,
  path: "/dev/null",
  fileBytes: bytes.length,
  mode: 0o644,
  offset: 0,
  length: bytes.length,
  fileIndex: 0,
  digest: blake3Hex(bytes),
}));

export const targets: readonly FuzzTarget[] = [
  {
    name: "PieceSink.body()",
    seeds: [streamOf(new Set()), streamOf(new Set([4])), streamOf(new Set([3, 4, 9]))],
    run: (given) => {
      const bytes = Buffer.from(given);
      const { verified, refused } = receive(bytes, 1 + ((bytes[4] ?? 0) % 64));
      // Whatever the parts were, each piece was verified or refused, once, and nothing else came.
      assert.deepEqual([...verified, ...refused].sort(), [...contents.keys()].sort());
      const length = verified.reduce((sum, piece) => sum + (contents.get(piece)?.length ?? 0), 0);
      assert.ok(bytes.length >= length + wanted.length * frameBytes);
      assert.deepEqual(receive(bytes, bytes.length), { verified, refused });
    },
  },
  {
    name: "readFrame()",
    seeds: [streamOf(new Set()).subarray(0, frameBytes)],
    run: (given) => {
      const bytes = Buffer.from(given).subarray(0, frameBytes);
      if (bytes.length < frameBytes) return;
      const copy = Buffer.alloc(frameBytes);
      writeFrame(copy, 0, readFrame(bytes, 0));
      assert.deepEqual(copy, bytes);
    },
  },
];

/** As a connection does it: parts arrive behind what has not been used yet. */
function receive(bytes: Buffer, partBytes: number): { verified: number[]; refused: number[] } {
  const verified: number[] = [];
  const sink = new PieceSink(wanted, (pieces) =>
    verified.push(...pieces.map(({ piece }) => piece)),
  );
  sink.head({
    status: 200,
    contentLength: bytes.length,
    closes: false,
    retryAfterMs: null,
    bytes: 0,
  });
  let start = 0;
  for (let end = 0; end < bytes.length; ) {
    end = Math.min(end + partBytes, bytes.length);
    start += sink.body(bytes.subarray(start, end));
  }
  if (start !== bytes.length) throw new RelightError("source_protocol", "It ends within a part");
  sink.end();
  return { verified, refused: [...sink.refused] };
}

function streamOf(refused: ReadonlySet<number>): Buffer {
  return Buffer.concat(
    [...contents].flatMap(([piece, bytes]) => {
      const frame = Buffer.alloc(frameBytes);
      writeFrame(frame, 0, { piece, length: bytes.length, isRefused: refused.has(piece) });
      return [frame, bytes];
    }),
  );
}
