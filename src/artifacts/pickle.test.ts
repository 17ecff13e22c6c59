// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { changeStrings } from "./pickle.ts";

/** `pickle.dumps({"a": "/old/x", "b": ["/old/x", b"/old/x", 7, -1.5, None, True], "c": 300}, protocol=4)` of CPython 3.12. */
const dumped = Buffer.from(
  "gASVOQAAAAAAAAB9lCiMAWGUjAYvb2xkL3iUjAFilF2UKGgCQwYvb2xkL3iUSwdHv/gAAAAAAABOiGWMAWOUTSwBdS4=",
  "base64",
);

const proto = Buffer.from([0x80, 4]);
const stop = Buffer.from(".");

const rename = (text: Buffer) =>
  text.toString("utf8") === "/old/x" ? Buffer.from("/a/longer/base/x") : null;

describe("changeStrings()", () => {
  test("gives back the same buffer when no string changes", () => {
    assert.equal(
      changeStrings(dumped, () => null),
      dumped,
    );
  });

  test("changes the string and the length of its frame, and nothing else", () => {
    const changed = changeStrings(dumped, rename);
    const [before, after] = [dumped.indexOf("/old/x"), changed.indexOf("/a/longer/base/x")];
    assert.equal(changed.length, dumped.length + 10);
    assert.equal(changed.readBigUInt64LE(3), dumped.readBigUInt64LE(3) + 10n);
    assert.deepEqual(changed.subarray(11, after - 1), dumped.subarray(11, before - 1));
    assert.deepEqual(changed.subarray(after + 16), dumped.subarray(before + 6));
    assert.ok(changed.includes("C\x06/old/x"), "bytes are no strings");
  });

  test("takes the opcode of Python's own pickler when a string crosses 255 bytes", () => {
    const long = `/a/${"x".repeat(300)}`;
    const there = changeStrings(dumped, (text) => (rename(text) ? Buffer.from(long) : null));
    assert.equal(there[there.indexOf(long) - 5], "X".charCodeAt(0));
    const back = changeStrings(there, (text) =>
      text.toString() === long ? Buffer.from("/old/x") : null,
    );
    assert.deepEqual(back, dumped);
  });

  test("counts only what lies in a frame towards its length", () => {
    const framed = frame(text("/old/x"));
    const pickle = Buffer.concat([proto, framed, text("/old/x"), frame(text("b")), stop]);
    const changed = changeStrings(pickle, rename);
    const wanted = text("/a/longer/base/x");
    assert.deepEqual(
      changed,
      Buffer.concat([proto, frame(wanted), wanted, frame(text("b")), stop]),
    );
  });

  const damaged: readonly (readonly [string, Buffer, RegExp])[] = [
    ["no bytes", Buffer.alloc(0), /does not begin/],
    ["text", Buffer.from('{"child_paths": {}}'), /does not begin/],
    ["an opcode of protocol 0", Buffer.concat([proto, Buffer.from("S'x'\n."), stop]), /too old/],
    ["no STOP", Buffer.concat([proto, text("a")]), /ends before/],
    ["bytes behind STOP", Buffer.concat([proto, stop, text("a")]), /something follows/],
    ["a string beyond the end", Buffer.from([0x80, 4, 0x8c, 200, 0x61]), /within an opcode/],
    [
      "a length of 2^63",
      Buffer.concat([proto, Buffer.from([0x8d]), u64(1n << 63n), stop]),
      /beyond its end/,
    ],
    [
      "a frame beyond the end",
      Buffer.concat([proto, Buffer.from([0x95]), u64(9n), stop]),
      /frames are damaged/,
    ],
    [
      "an opcode across a frame's end",
      Buffer.concat([proto, Buffer.from([0x95]), u64(2n), text("abc"), stop]),
      /frames are damaged/,
    ],
    [
      "a frame within a frame",
      Buffer.concat([proto, frame(Buffer.concat([frame(text("a")), text("b")])), stop]),
      /frames are damaged/,
    ],
    ["a GLOBAL without its second line", Buffer.concat([proto, Buffer.from("cos\n.")]), /no end/],
  ];
  for (const [what, bytes, reason] of damaged) {
    test(`refuses ${what}`, () => {
      assert.throws(() => changeStrings(bytes, rename), {
        code: "structure_invalid",
        message: reason,
      });
    });
  }

  test("refuses every truncation of a real pickle", () => {
    for (let length = 0; length < dumped.length; length++)
      assert.throws(() => changeStrings(dumped.subarray(0, length), rename), {
        code: "structure_invalid",
      });
  });
});

function text(value: string): Buffer {
  return Buffer.concat([Buffer.from([0x8c, value.length]), Buffer.from(value)]);
}

function frame(body: Buffer): Buffer {
  return Buffer.concat([Buffer.from([0x95]), u64(BigInt(body.length)), body]);
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
}
