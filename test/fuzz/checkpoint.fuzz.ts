// SPDX-License-Identifier: Apache-2.0
// What a checkpoint says of itself: safetensors headers and indexes of weights.

import assert from "node:assert/strict";
import { parseIndex } from "../../src/artifacts/kinds/checkpoint-order.ts";
import {
  breaksSafetensors,
  safetensorsHeadBytes,
  safetensorsJsonBytesMax,
} from "../../src/core/safetensors.ts";
import { RelightError } from "../../src/errors.ts";
import { safetensors } from "../support/checkpoint.ts";
import type { FuzzTarget } from "../support/fuzz.ts";

export const targets: readonly FuzzTarget[] = [
  {
    name: "breaksSafetensors()",
    seeds: [safetensors(["a", "b"], 40)],
    run: (given) => {
      const bytes = Buffer.from(given);
      const head = safetensorsHeadBytes(bytes.subarray(0, 8), bytes.length);
      assert.ok(head <= Math.max(8, Math.min(bytes.length, safetensorsJsonBytesMax + 8)));
      const problem = breaksSafetensors(bytes.subarray(0, head), bytes.length);
      if (problem !== null) throw new RelightError("structure_invalid", problem);
      const header = JSON.parse(bytes.subarray(8, head).toString("utf8")) as Record<
        string,
        { data_offsets?: [number, number] }
      >;
      for (const [name, { data_offsets: [begin, end] = [0, 0] }] of Object.entries(header))
        if (name !== "__metadata__")
          assert.ok(begin >= 0 && begin <= end && head + end <= bytes.length, "inside the file");
    },
  },
  {
    name: "parseIndex()",
    seeds: ['{"metadata":{},"weight_map":{"model.layers.0.w":"model-00001-of-00002.safetensors"}}'],
    run: (given) => {
      const map = parseIndex(Buffer.from(given));
      if (map === null) throw new RelightError("structure_invalid", "no index");
      for (const file of map.values()) assert.equal(typeof file, "string");
    },
  },
];
