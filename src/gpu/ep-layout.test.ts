// SPDX-License-Identifier: Apache-2.0
// The host's arithmetic against what the kernels' own header computed (kernels/test/layout.json, by
// kernels/test/layout_vectors.cu).

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { z } from "zod";
import { epLayout } from "./ep-layout.ts";

const vectors = z
  .array(
    z.object({
      config: z.tuple([
        z.number(),
        z.number(),
        z.number(),
        z.number(),
        z.number(),
        z.literal([1, 2]),
        z.number(),
      ]),
      window: z.number(),
      scratch: z.number(),
      row_at: z.number(),
      combine_at: z.number(),
      row_stride: z.number(),
    }),
  )
  .parse(
    JSON.parse(readFileSync(new URL("../../kernels/test/layout.json", import.meta.url), "utf8")),
  );

for (const vector of vectors) {
  test(`epLayout() agrees with layout.cuh for ${vector.config.join(", ")}`, () => {
    const [ranksMax, tokensMax, hidden, topk, localExpertsMax, parities, select] = vector.config;
    const layout = epLayout({
      ranksMax,
      tokensMax,
      hidden,
      topk,
      localExpertsMax,
      parities,
      hasSelectRows: select === 1,
    });
    assert.equal(layout.windowBytes, vector.window);
    assert.equal(layout.scratchBytes, vector.scratch);
    assert.equal(layout.rowAt, vector.row_at);
    assert.equal(layout.combineAt, vector.combine_at);
    assert.equal(layout.rowStride, vector.row_stride);
  });
}
