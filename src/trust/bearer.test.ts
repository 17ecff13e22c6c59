// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { findBearer, readBearerTokens } from "./bearer.ts";

const old = "o".repeat(32);
const fresh = "f".repeat(43);
const file = Buffer.from(
  `# rotating\nreader worker ${old}\n\n  reader worker ${fresh}\noperator admin ${"x".repeat(40)}  \n`,
);

describe("bearer tokens", () => {
  test("findBearer() knows every token of the file, two of one caller at once", () => {
    const tokens = readBearerTokens(file);
    assert.deepEqual(findBearer(tokens, old), { role: "reader", name: "worker" });
    assert.deepEqual(findBearer(tokens, fresh), { role: "reader", name: "worker" });
    assert.deepEqual(findBearer(tokens, "x".repeat(40)), { role: "operator", name: "admin" });
  });

  test("findBearer() knows no other text, however close or long", () => {
    const tokens = readBearerTokens(file);
    for (const text of [
      "",
      old.slice(1),
      `${old}o`,
      ` ${old}`,
      old.toUpperCase(),
      "f".repeat(1_000_000),
    ])
      assert.equal(findBearer(tokens, text), null);
  });

  const malformed = [
    `root worker ${old}`,
    `reader ${old}`,
    `reader worker ${old} extra`,
    "reader worker short",
    `reader wor/ker ${old}`,
    `reader a ${old}\nmirror b ${old}`,
    `reader a ${"é".repeat(32)}`,
    Array.from({ length: 1_001 }, (_, at) => `reader n ${"a".repeat(32)}${at}`).join("\n"),
    "#".repeat(300_000),
  ];
  for (const text of malformed) {
    test(`readBearerTokens() refuses ${JSON.stringify(text.slice(0, 30))} without repeating it`, () => {
      assert.throws(
        () => readBearerTokens(Buffer.from(text)),
        (error: { code: string; message: string }) =>
          error.code === "config_invalid" && !error.message.includes(old),
      );
    });
  }
});
