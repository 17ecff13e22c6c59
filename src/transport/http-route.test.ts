// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { withCode } from "../../test/contracts/transport.ts";
import { parseByteRange, parseRoute } from "./http-route.ts";

const id = "a1".repeat(32);

describe("parseRoute()", () => {
  test("reads every path of the byte path", () => {
    assert.deepEqual(parseRoute("/healthz"), { kind: "health" });
    assert.deepEqual(parseRoute(`/v1/artifacts/${id}/have`), { kind: "have", artifactId: id });
    assert.deepEqual(parseRoute(`/v1/artifacts/${id}/pieces?ranges=0-4,7`), {
      kind: "pieces",
      artifactId: id,
      ranges: "0-4,7",
    });
    assert.deepEqual(parseRoute(`/v1/artifacts/${id}/files/12`), {
      kind: "file",
      artifactId: id,
      fileIndex: 12,
    });
  });

  test("refuses what is not one of them", () => {
    for (const path of [
      "",
      "/",
      "/v1/artifacts",
      `/v1/artifacts/${id}/files/-1`,
      `//v1/artifacts/${id}/have`,
    ]) {
      assert.throws(() => parseRoute(path), withCode("not_found"), path);
    }
    assert.throws(
      () => parseRoute(`/v1/artifacts/${id}/pieces?ranges=a`),
      withCode("request_invalid"),
    );
  });
});

describe("parseByteRange()", () => {
  test("reads the three forms of one range", () => {
    assert.deepEqual(parseByteRange("bytes=2-5", 10), { offset: 2, length: 4 });
    assert.deepEqual(parseByteRange("bytes=7-", 10), { offset: 7, length: 3 });
    assert.deepEqual(parseByteRange("bytes=-3", 10), { offset: 7, length: 3 });
    assert.deepEqual(parseByteRange("bytes=0-99", 10), { offset: 0, length: 10 });
  });

  test("ignores what a server may ignore", () => {
    for (const header of [undefined, "lines=1-2", "bytes=0-1,3-4", "bytes=-", "x"]) {
      assert.equal(parseByteRange(header, 10), null);
    }
  });

  test("refuses a range beyond the end", () => {
    for (const header of ["bytes=10-", "bytes=5-4", "bytes=-0"]) {
      assert.throws(() => parseByteRange(header, 10), withCode("request_invalid"), header);
    }
  });
});
