// SPDX-License-Identifier: Apache-2.0
// What engines and agents of other replicas say about weights: manifests and calls. Of a manifest that is
// accepted no tensor leaves its allocation, and a plan made of two of them writes nowhere else.

import assert from "node:assert/strict";
import { RelightError } from "../../src/errors.ts";
import { calls, read } from "../../src/weights/host-calls.ts";
import {
  contentId,
  layoutFingerprint,
  parseManifest,
  type WeightManifest,
} from "../../src/weights/manifest.ts";
import { matchLayouts } from "../../src/weights/match.ts";
import { planTransfer } from "../../src/weights/plan.ts";
import { rowBlocks, spanBytes } from "../../src/weights/tensor.ts";
import { layOut, oddTensors } from "../contracts/weights-engine.ts";
import type { FuzzTarget } from "../support/fuzz.ts";

const layout = layOut({ tensors: oddTensors, allocationCount: 3, isReversed: false }, 90);
const manifest = {
  ...layout,
  generation: 1,
  digests: layout.tensors.map((one) => (spanBytes(one) === 0 ? null : "ab".repeat(16))),
};
const seed = JSON.stringify(manifest);
const coordinate = { ...layout.coordinate };
const seedCalls = [
  { op: "load", args: { layout: {}, deviceUuid: "GPU-0", sources: ["/a"], content: null } },
  { op: "look", args: { model: "m", coordinate, sources: [] } },
  { op: "claim", args: { key: "k", generation: 1, ttlMs: 1 } },
  { op: "change", args: { key: "k" } },
];

export const targets: readonly FuzzTarget[] = [
  {
    name: "parseManifest()",
    seeds: [seed, seed.replace('"generation":1', '"generation":7')],
    run: (bytes) => {
      const parsed = parseManifest(jsonOf(bytes));
      checkPlaces(parsed);
      assert.match(layoutFingerprint(parsed), /^[0-9a-f]{64}$/);
      assert.match(contentId(parsed), /^[0-9a-f]{64}$/);
      checkPlan(parsed);
    },
  },
  {
    name: "calls at an agent's socket",
    seeds: seedCalls.map((call) => JSON.stringify(call)),
    run: (bytes) => {
      const { op, args } = callOf(bytes);
      if (!Object.hasOwn(calls, op)) throw new RelightError("request_invalid", "no such call");
      const given = read(op as keyof typeof calls, args);
      assert.deepEqual(read(op as keyof typeof calls, given), given, "it reads what it gave");
    },
  },
];

function checkPlaces({ tensors, allocations }: WeightManifest): void {
  for (const tensor of tensors) {
    const end = allocations[tensor.allocation]?.bytes ?? 0;
    for (const { offsetBytes, rowBytes, rows, pitchBytes } of rowBlocks(tensor)) {
      assert.ok(offsetBytes + (rows - 1) * pitchBytes + rowBytes <= end, "a row leaves its place");
    }
  }
}

/** From a source that says this into the layout that we know. */
function checkPlan(source: WeightManifest): void {
  const pairs = matchLayouts(source, layout);
  const plan = planTransfer(pairs, source, layout, { batchBytes: 2 ** 20 });
  for (const { copies } of plan.batches) {
    for (const { from, to, rowBytes, rows, fromPitchBytes, toPitchBytes } of copies) {
      const [has, holds] = [source.allocations[from.allocation], layout.allocations[to.allocation]];
      const read = from.offsetBytes + (rows - 1) * fromPitchBytes + rowBytes;
      const written = to.offsetBytes + (rows - 1) * toPitchBytes + rowBytes;
      assert.ok(read <= (has?.bytes ?? 0), "a copy reads beyond the source");
      assert.ok(written <= (holds?.bytes ?? 0), "a copy writes beyond the target");
    }
  }
}

function callOf(bytes: Uint8Array): { readonly op: string; readonly args: unknown } {
  const call = jsonOf(bytes);
  const isCall = typeof call === "object" && call !== null && "op" in call && "args" in call;
  if (isCall && typeof call.op === "string") return { op: call.op, args: call.args };
  throw new RelightError("request_invalid", "Cannot read the call: it is none");
}

function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch (cause) {
    throw new RelightError("request_invalid", "Cannot read it: it is no JSON", { cause });
  }
}
