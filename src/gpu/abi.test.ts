// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { abi, readStruct, type StructName, structBytes, writeStruct } from "./abi.ts";

const header = readFileSync(
  new URL("../../kernels/include/relight/abi.h", import.meta.url),
  "utf8",
);

test("abi.ts has the version and the constants of the header", () => {
  assert.match(header, new RegExp(`#define RELIGHT_ABI_VERSION ${abi.version}u`));
  for (const [name, value] of Object.entries(abi.constants)) {
    assert.match(header, new RegExp(`#define ${name} ${value}u`));
  }
});

test("abi.ts has the fields of the header, in its order and with its types", () => {
  for (const [name, fields] of Object.entries(abi.structs)) {
    const body = new RegExp(`typedef struct ${name} \\{([^}]*)\\}`).exec(header)?.[1] ?? "";
    const declared = [...body.matchAll(/^\s*uint(32|64)_t (\w+);/gm)].map(([, bits, field]) => [
      field,
      `u${bits}`,
    ]);
    assert.deepEqual(declared, fields, name);
    assert.equal(structBytes(name as StructName) % 8, 0);
  }
});

test("writeStruct() and readStruct() are inverse", () => {
  const values = { address: 2n ** 63n + 5n, bytes: 7n, first_chunk: 2n ** 64n - 1n };
  const bytes = Buffer.alloc(40);
  writeStruct("RelightDigestSegment", values, { bytes, offset: 16 });
  assert.deepEqual(readStruct("RelightDigestSegment", { bytes, offset: 16 }), values);
  assert.ok(bytes.subarray(0, 16).every((byte) => byte === 0));
});
