// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { layOut, oddTensors } from "../../test/contracts/weights-engine.ts";
import { PublishedBytes } from "./published-bytes.ts";
import { rowBlocks } from "./tensor.ts";

const place = { allocationCount: 3, isReversed: false };
const layout = layOut({ tensors: oddTensors, ...place }, 90);
const published = new PublishedBytes(layout);

test("includes() every row of every tensor", () => {
  for (const tensor of layout.tensors) {
    for (const { offsetBytes, rowBytes, rows, pitchBytes } of rowBlocks(tensor)) {
      for (let row = 0; row < rows; row += 1) {
        const range = { offsetBytes: offsetBytes + row * pitchBytes, bytes: rowBytes };
        const { allocation } = tensor;
        assert.ok(published.includes({ allocation, ...range }), tensor.name);
      }
    }
  }
});

test("includes() no padding between rows, nothing behind the last tensor, no other allocation", () => {
  const padded = layout.tensors.find(({ name }) => name === "padded");
  assert.ok(padded !== undefined);
  const { allocation, offsetBytes } = padded;
  assert.ok(!published.includes({ allocation, offsetBytes, bytes: 31 }));
  assert.ok(!published.includes({ allocation, offsetBytes: offsetBytes + 30, bytes: 1 }));
  const [first] = layout.allocations;
  assert.ok(first !== undefined);
  assert.ok(!published.includes({ allocation: 0, offsetBytes: first.bytes, bytes: 1 }));
  assert.ok(!published.includes({ allocation: 0, offsetBytes: 0, bytes: first.bytes + 1 }));
  assert.ok(!published.includes({ allocation: 9, offsetBytes: 0, bytes: 1 }));
});

test("includes() the few bytes that an allocator's rounding leaves between two tensors", () => {
  const tensors = [100, 200].map((length, index) => ({
    name: `${index}`,
    dtype: "uint8" as const,
    shape: [length],
    stride: [1],
  }));
  const rounded = layOut({ tensors, allocationCount: 1, isReversed: false }, 90);
  const whole = { allocation: 0, offsetBytes: 0, bytes: 512 + 200 };
  assert.ok(new PublishedBytes(rounded).includes(whole));
});
