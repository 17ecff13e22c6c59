// SPDX-License-Identifier: Apache-2.0
// The pure half: what a tensor's bytes are, what fits what, what is copied in which order.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { layOut, oddTensors, type TensorSpec } from "../../test/contracts/weights-engine.ts";
import { type Code, RelightError } from "../errors.ts";
import {
  contentId,
  layoutFingerprint,
  parseLayout,
  parseManifest,
  type WeightManifest,
} from "./manifest.ts";
import { matchLayouts } from "./match.ts";
import { copyBytes, planTransfer } from "./plan.ts";
import { rowBlocks, rowCount, spanBytes } from "./tensor.ts";

const place = { allocationCount: 2, isReversed: false };
const layout = layOut({ tensors: oddTensors, ...place }, 90);

function manifestOf(over: Partial<WeightManifest> = {}): WeightManifest {
  const base = { ...layout, ...over };
  const digests = base.tensors.map((tensor) => (spanBytes(tensor) === 0 ? null : digestOf(tensor)));
  return { ...base, generation: 1, digests, ...over };
}

/** Equal for tensors that share memory, as real ones are. */
function digestOf(tensor: { allocation: number; offsetBytes: number }): string {
  return `${tensor.allocation}${tensor.offsetBytes}`.padStart(32, "0");
}

function bytesOf(name: string): number[] {
  const tensor = layout.tensors.find((one) => one.name === name);
  assert.ok(tensor !== undefined);
  return rowBlocks(tensor).flatMap((block) =>
    Array.from({ length: block.rows }, (_, row) => row).flatMap((row) =>
      Array.from(
        { length: block.rowBytes },
        (_, byte) => block.offsetBytes + row * block.pitchBytes + byte - tensor.offsetBytes,
      ),
    ),
  );
}

/** Every byte of every element, found by walking all indices. */
function bytesByIndex(name: string): number[] {
  const tensor = layout.tensors.find((one) => one.name === name);
  assert.ok(tensor !== undefined);
  const item = spanBytes({ ...tensor, shape: [], stride: [] });
  let offsets = [0];
  tensor.shape.forEach((length, axis) => {
    const strideBytes = (tensor.stride[axis] ?? 0) * item;
    offsets = offsets.flatMap((offset) =>
      Array.from({ length }, (_, index) => offset + index * strideBytes),
    );
  });
  const all = offsets.flatMap((offset) => Array.from({ length: item }, (_, byte) => offset + byte));
  return [...new Set(all)].sort((a, b) => a - b);
}

describe("tensor", () => {
  for (const { name } of oddTensors) {
    test(`rowBlocks() of "${name}" are exactly the bytes of its elements, each once`, () => {
      assert.deepEqual(bytesOf(name), bytesByIndex(name));
    });
  }

  test("a contiguous, a permuted and an expanded tensor are one row", () => {
    for (const name of ["gate_up", "transposed", "w_uk_t", "expanded", "step"]) {
      const tensor = layout.tensors.find((one) => one.name === name);
      assert.ok(tensor !== undefined);
      assert.equal(rowCount(tensor), 1, name);
    }
  });
});

describe("manifest", () => {
  test("parseLayout() and parseManifest() give back what they were given", () => {
    assert.deepEqual(parseLayout(JSON.parse(JSON.stringify(layout))), layout);
    const manifest = manifestOf();
    assert.deepEqual(parseManifest(JSON.parse(JSON.stringify(manifest))), manifest);
  });

  const first = layout.tensors[0];
  assert.ok(first !== undefined);
  const broken: readonly (readonly [string, object])[] = [
    ["an unknown field", { extra: 1 }],
    ["another version", { version: 2 }],
    ["a tensor beyond its allocation", { allocations: [{ bytes: 512 }, { bytes: 512 }] }],
    ["a tensor of no allocation", { tensors: [{ ...first, allocation: 7 }] }],
    ["two tensors of one name", { tensors: [first, first] }],
    ["an unknown dtype", { tensors: [{ ...first, dtype: "toString" }] }],
    ["a negative stride", { tensors: [{ ...first, stride: [-32, 1] }] }],
    ["a shape and a stride of unlike length", { tensors: [{ ...first, stride: [1] }] }],
    ["a length that overflows", { tensors: [{ ...first, shape: [2 ** 53, 2 ** 53] }] }],
    [
      "a span that overflows into nothing",
      { tensors: [{ ...first, shape: [2 ** 48, 2 ** 48], stride: [2 ** 48, 0] }] },
    ],
    ["a fractional offset", { tensors: [{ ...first, offsetBytes: 0.5 }] }],
    [
      "more rows than anyone may ask for",
      {
        allocations: [{ bytes: 2 ** 40 }],
        tensors: [{ ...first, shape: [2 ** 21, 1, 3], stride: [8, 8, 2] }],
      },
    ],
    [
      "a rank outside its group",
      { coordinate: { ...layout.coordinate, tensor: { rank: 2, size: 2 } } },
    ],
  ];
  for (const [what, over] of broken) {
    test(`parseLayout() refuses ${what}`, () => {
      throws(() => parseLayout({ ...layout, ...over }), "manifest_invalid");
    });
  }

  test("parseManifest() refuses a digest too few and a missing digest of a tensor with bytes", () => {
    const manifest = manifestOf();
    throws(() => parseManifest({ ...manifest, digests: [] }), "manifest_invalid");
    for (const digest of [null, "", "0".repeat(31), "g".repeat(32), 7]) {
      const digests = [digest, ...manifest.digests.slice(1)];
      throws(() => parseManifest({ ...manifest, digests }), "manifest_invalid");
    }
  });

  test("layoutFingerprint() is of the tensors, not of where they lie or of the data-parallel rank", () => {
    const moved = layOut({ tensors: oddTensors, allocationCount: 3, isReversed: true }, 90);
    assert.equal(layoutFingerprint(moved), layoutFingerprint(layout));
    const other = { ...layout, coordinate: { ...layout.coordinate, data: { rank: 1, size: 4 } } };
    assert.equal(layoutFingerprint(other), layoutFingerprint(layout));
    const stage = {
      ...layout,
      coordinate: { ...layout.coordinate, pipeline: { rank: 1, size: 2 } },
    };
    assert.notEqual(layoutFingerprint(stage), layoutFingerprint(layout));
    assert.notEqual(layoutFingerprint({ ...layout, arch: 100 }), layoutFingerprint(layout));
  });

  test("contentId() differs for other values of the same shapes", () => {
    const manifest = manifestOf();
    const digests = manifest.digests.with(0, "f".repeat(32));
    assert.notEqual(contentId({ ...manifest, digests }), contentId(manifest));
    assert.equal(contentId({ ...manifest, generation: 9 }), contentId(manifest));
  });
});

describe("matchLayouts()", () => {
  const refusals: readonly (readonly [string, Partial<WeightManifest>, RegExp])[] = [
    ["another model", { model: "other" }, /model is "other", wanted "test\/model"/],
    ["another revision", { revision: "def" }, /revision is "def"/],
    ["raw tensors for live ones", { state: "raw" }, /state is "raw", wanted "live"/],
    ["another GPU architecture", { arch: 100 }, /arch is "100", wanted "90"/],
    [
      "a draft for a target",
      { coordinate: { ...layout.coordinate, role: "draft" } },
      /role is draft, wanted target/,
    ],
    [
      "another tensor rank",
      { coordinate: { ...layout.coordinate, tensor: { rank: 1, size: 2 } } },
      /tensor rank is 1 of 2, wanted 0 of 1/,
    ],
    [
      "another pipeline stage",
      { coordinate: { ...layout.coordinate, pipeline: { rank: 1, size: 2 } } },
      /pipeline rank is 1 of 2/,
    ],
    [
      "another expert rank",
      { coordinate: { ...layout.coordinate, expert: { rank: 3, size: 8 } } },
      /expert rank is 3 of 8/,
    ],
    ["a tensor that the source lacks", { tensors: layout.tensors.slice(1) }, /it has no "embed"/],
    [
      "a tensor that the target lacks",
      {
        tensors: [
          ...layout.tensors,
          {
            name: "w_vc",
            kind: "derived",
            dtype: "int8",
            shape: [1],
            stride: [1],
            allocation: 0,
            offsetBytes: 0,
          },
        ],
      },
      /it has "w_vc", which the target does not have/,
    ],
    [
      "another dtype of the same size",
      {
        tensors: layout.tensors.map((one) =>
          one.name === "gate_up" ? { ...one, dtype: "float16" } : one,
        ),
      },
      /"gate_up" has dtype float16, wanted bfloat16/,
    ],
    [
      "another shape of the same size",
      {
        tensors: layout.tensors.map((one) =>
          one.name === "gate_up" ? { ...one, shape: [300, 512], stride: [512, 1] } : one,
        ),
      },
      /"gate_up" has shape 300,512, wanted 512,300/,
    ],
    [
      "another stride of the same shape",
      {
        tensors: layout.tensors.map((one) =>
          one.name === "gate_up" ? { ...one, stride: [1, 512] } : one,
        ),
      },
      /"gate_up" has stride 1,512, wanted 300,1/,
    ],
  ];
  for (const [what, over, message] of refusals) {
    test(`refuses ${what} and names it`, () => {
      const source = manifestOf(over);
      assert.throws(
        () => matchLayouts(source, layout),
        (error) => {
          assert.ok(error instanceof RelightError);
          assert.equal(error.code, "layout_mismatch");
          assert.match(error.message, message);
          return true;
        },
      );
    });
  }

  test("takes a source of another data-parallel rank", () => {
    const coordinate = { ...layout.coordinate, data: { rank: 3, size: 4 } };
    assert.equal(matchLayouts(manifestOf({ coordinate }), layout).length, oddTensors.length);
  });

  test("refuses values that differ where the target has one memory for two names", () => {
    const manifest = manifestOf();
    const lmHead = manifest.tensors.findIndex(({ name }) => name === "lm_head");
    const digests = manifest.digests.with(lmHead, "e".repeat(32));
    throws(() => matchLayouts({ ...manifest, digests }, layout), "layout_mismatch");
  });
});

describe("planTransfer()", () => {
  const many: TensorSpec[] = Array.from({ length: 1_000 }, (_, index) => ({
    name: `experts.${index}`,
    dtype: "bfloat16",
    shape: [16, 100],
    stride: [100, 1],
  }));

  function plan(tensors: readonly TensorSpec[], target: typeof place, batchBytes = 2 ** 20) {
    const from = layOut({ tensors, ...place }, 90);
    const to = layOut({ tensors, ...target }, 90);
    const source = manifestOf(from);
    return { plan: planTransfer(matchLayouts(source, to), source, to, { batchBytes }), from, to };
  }

  test("joins neighbours that lie the same way on both sides into one copy an allocation", () => {
    assert.equal(plan(many, place, 2 ** 30).plan.copyCount, 2);
  });

  test("copies each tensor alone where the target lies in another order", () => {
    assert.equal(plan(many, { allocationCount: 2, isReversed: true }).plan.copyCount, 1_000);
  });

  for (const isReversed of [false, true]) {
    for (const batchBytes of [1_000, 2 ** 14, 2 ** 30]) {
      test(`brings every byte of every tensor to its place, reversed ${isReversed}, batches of ${batchBytes}`, () => {
        const {
          plan: made,
          from,
          to,
        } = plan(oddTensors, { allocationCount: 2, isReversed }, batchBytes);
        const landed = new Map<string, string>();
        const whole: number[] = [...made.empty];
        for (const batch of made.batches) {
          for (const copy of batch.copies) {
            for (let row = 0; row < copy.rows; row += 1) {
              for (let byte = 0; byte < copy.rowBytes; byte += 1) {
                const there = copy.to.offsetBytes + row * copy.toPitchBytes + byte;
                const here = copy.from.offsetBytes + row * copy.fromPitchBytes + byte;
                landed.set(`${copy.to.allocation}:${there}`, `${copy.from.allocation}:${here}`);
              }
            }
          }
          // A batch names a tensor only once all of it has landed.
          for (const index of batch.tensors) {
            for (const [there, here] of byteMap(index, from, to)) {
              assert.equal(landed.get(there), here);
            }
          }
          whole.push(...batch.tensors);
        }
        assert.deepEqual(
          whole.toSorted((a, b) => a - b),
          oddTensors.map((_, index) => index),
        );
        assert.equal(
          made.bytes,
          made.batches.flatMap((one) => one.copies).reduce((sum, one) => sum + copyBytes(one), 0),
        );
      });
    }
  }

  test("copies memory that two names share once", () => {
    const tied = oddTensors.filter(({ name }) => name === "embed" || name === "lm_head");
    const { plan: made } = plan(tied, place);
    assert.equal(made.bytes, 64 * 32 * 2);
    assert.deepEqual(made.batches[0]?.tensors, [0, 1]);
  });

  test("never writes a byte of the target that is no tensor's, but for an allocator's rounding", () => {
    const { plan: made, to } = plan(oddTensors, place, 2 ** 30);
    const padded = to.tensors.findIndex(({ name }) => name === "padded");
    const tensor = to.tensors[padded];
    assert.ok(tensor !== undefined);
    const behindRow = tensor.offsetBytes + 30;
    const writers = made.batches
      .flatMap(({ copies }) => copies)
      .filter((copy) => copy.to.allocation === tensor.allocation)
      .flatMap((copy) =>
        Array.from({ length: copy.rows }, (_, row) => ({
          from: copy.to.offsetBytes + row * copy.toPitchBytes,
          bytes: copy.rowBytes,
        })),
      )
      .filter(({ from, bytes }) => from <= behindRow && behindRow < from + bytes);
    assert.deepEqual(writers, []);
  });

  function byteMap(index: number, from: typeof layout, to: typeof layout): [string, string][] {
    const [source, target] = [from.tensors[index], to.tensors[index]];
    assert.ok(source !== undefined && target !== undefined);
    const list = (tensor: typeof source) =>
      rowBlocks(tensor).flatMap((block) =>
        Array.from({ length: block.rows * block.rowBytes }, (_, at) => {
          const row = Math.floor(at / block.rowBytes);
          const byte = block.offsetBytes + row * block.pitchBytes + (at % block.rowBytes);
          return `${tensor.allocation}:${byte}`;
        }),
      );
    const there = list(target);
    return list(source).map((here, place) => [there[place] ?? "", here]);
  }
});

function throws(act: () => unknown, code: Code): void {
  assert.throws(act, (error) => error instanceof RelightError && error.code === code);
}
