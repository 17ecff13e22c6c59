// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { withCode } from "../../test/contracts/transport.ts";
import { parseHead } from "./http-head.ts";

const bytesMax = 4_096;
const read = (text: string) => parseHead(Buffer.from(text, "latin1"), bytesMax);
const refused = withCode("source_protocol");

describe("parseHead()", () => {
  test("reads status, length, closing and the time to wait", () => {
    const text =
      "HTTP/1.1 503 Busy\r\nContent-Length: 7\r\nConnection: Close\r\nRetry-After: 2\r\n\r\n";
    assert.deepEqual(read(`${text}payload`), {
      status: 503,
      contentLength: 7,
      closes: true,
      retryAfterMs: 2_000,
      bytes: text.length,
    });
  });

  test("is null for every beginning of a head, and reads nothing behind it", () => {
    const text = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n";
    for (let end = 0; end < text.length; end++) assert.equal(read(text.slice(0, end)), null);
    assert.equal(read(`${text}Content-Length: 13\r\n\r\n`)?.contentLength, 12);
  });

  test("takes a date in Retry-After for no time", () => {
    const date = "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT";
    assert.equal(
      read(`HTTP/1.1 503 x\r\nContent-Length: 0\r\n${date}\r\n\r\n`)?.retryAfterMs,
      null,
    );
  });

  for (const [name, text] of [
    ["another version", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"],
    ["an interim status", "HTTP/1.1 100 Continue\r\n\r\n"],
    ["no length", "HTTP/1.1 200 OK\r\n\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"],
    ["a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"],
    ["a length in hexadecimal", "HTTP/1.1 200 OK\r\nContent-Length: 0x10\r\n\r\n"],
    [
      "a length beyond what a number holds",
      `HTTP/1.1 200 OK\r\nContent-Length: ${"9".repeat(16)}\r\n\r\n`,
    ],
    ["chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"],
    ["compression", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\n"],
    ["a folded line", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 1\r\n\r\n"],
    ["a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n"],
    ["a control character", "HTTP/1.1 200 OK\r\nX: \x01\r\nContent-Length: 1\r\n\r\n"],
    ["more headers than any source sends", `HTTP/1.1 200 OK\r\n${"X: y\r\n".repeat(65)}\r\n`],
    ["a head without end", `HTTP/1.1 200 OK\r\n${"X: y\r\n".repeat(1_000)}`],
    ["another protocol, from its first byte", "S"],
  ] as const) {
    test(`refuses ${name}`, () => {
      assert.throws(() => read(text), refused);
    });
  }
});
