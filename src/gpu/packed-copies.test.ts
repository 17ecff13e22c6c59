// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Command, DevicePtr } from "./driver.ts";
import { packCopies } from "./packed-copies.ts";

function copies(count: number, bytes = 8): Command[] {
  return Array.from({ length: count }, (_, index) => ({
    do: "copy",
    to: BigInt(index) as DevicePtr,
    from: (2n ** 60n + BigInt(index)) as DevicePtr,
    bytes,
  }));
}

test("packCopies() keeps what is to be done, in order, around every other command", () => {
  const fill: Command = { do: "fill", to: 1n as DevicePtr, byte: 0, bytes: 1 };
  const packed = packCopies([
    ...copies(5),
    fill,
    ...copies(3),
    ...copies(1, 0),
    fill,
    ...copies(4),
  ]);
  assert.deepEqual(
    packed.map((command) => command.do),
    ["copies", "fill", "copy", "copy", "copy", "copy", "fill", "copies"],
  );
  const [first] = packed;
  assert.ok(first?.do === "copies");
  assert.deepEqual([...first.to], [0n, 1n, 2n, 3n, 4n]);
  assert.equal(first.from[4], 2n ** 60n + 4n);
  assert.deepEqual([...first.bytes], [8n, 8n, 8n, 8n, 8n]);
});
