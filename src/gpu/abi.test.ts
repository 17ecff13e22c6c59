// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { abi, placeOf, readStruct, type StructName, structBytes, writeStruct } from "./abi.ts";

const header = readFileSync(
  new URL("../../kernels/include/relight/abi.h", import.meta.url),
  "utf8",
);

test("abi.ts has the version and the constants of the header", () => {
  assert.match(header, new RegExp(`#define RELIGHT_ABI_VERSION ${abi.version}u`));
  for (const [name, value] of Object.entries(abi.constants)) {
    const written = name === "RELIGHT_EP_NO_OWNER" ? "0xffffffffu" : String(value);
    assert.match(header, new RegExp(`#define ${name} ${written}u?\\b`), name);
  }
});

test("abi.ts has the fields of the header, in its order and with its types", () => {
  for (const [name, fields] of Object.entries(abi.structs)) {
    const text = new RegExp(`typedef struct ${name} \\{(.*?)\\} ${name};`, "s").exec(header)?.[1];
    const body = (text ?? "").replace(/\/\*.*?\*\//gs, "");
    const declared = [...body.matchAll(/^\s*(\w+) (\w+)(?:\[(\w+)\])?;/gm)].map(
      ([, type = "", field, count]) => {
        const scalar = /^uint(32|64)_t$/.exec(type)?.[1];
        const length = count === "RELIGHT_EP_RANKS_MAX" ? 32 : Number(count);
        const start = [field, scalar === undefined ? type : `u${scalar}`];
        return count === undefined ? start : [...start, length];
      },
    );
    assert.deepEqual(declared, fields, name);
    assert.equal(structBytes(name as StructName) % 8, 0);
  }
});

test("placeOf() finds elements of arrays and what stands behind inner structs", () => {
  const { offset } = placeOf("RelightEpState", "window");
  assert.equal(placeOf("RelightEpState", "window", 3).offset, offset + 24);
  const combine = placeOf("RelightEpState", "combine").offset;
  assert.equal(placeOf("RelightEpState", "dispatch").offset, combine - 16);
  assert.equal(combine % 16, 0, "results are stored by 16 bytes");
  assert.equal(structBytes("RelightEpState") % 8, 0);
});

test("writeStruct() and readStruct() are inverse", () => {
  const values = { address: 2n ** 63n + 5n, bytes: 7n, first_chunk: 2n ** 64n - 1n };
  const bytes = Buffer.alloc(40);
  writeStruct("RelightDigestSegment", values, { bytes, offset: 16 });
  assert.deepEqual(readStruct("RelightDigestSegment", { bytes, offset: 16 }), values);
  assert.ok(bytes.subarray(0, 16).every((byte) => byte === 0));
});
