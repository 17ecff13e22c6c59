// SPDX-License-Identifier: Apache-2.0
// The byte path's two sides: a source's response head as a target reads it, a request as a source does.

import assert from "node:assert/strict";
import { parseHead } from "../../src/transport/http-head.ts";
import { parseByteRange, parseRoute } from "../../src/transport/http-route.ts";
import type { FuzzTarget } from "../support/fuzz.ts";

const headBytesMax = 16_384;
const id = "0123456789abcdef".repeat(4);
const size = 1_000;

export const targets: readonly FuzzTarget[] = [
  {
    name: "parseHead()",
    seeds: [
      "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello",
      "HTTP/1.1 503 \r\nConnection: close\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n",
      "HTTP/1.",
    ],
    run: (given) => {
      const bytes = Buffer.from(given);
      const head = parseHead(bytes, headBytesMax);
      if (head === null) return;
      assert.ok(head.bytes <= bytes.length && head.bytes <= headBytesMax);
      assert.ok(head.status >= 200 && head.status <= 599);
      assert.ok(Number.isSafeInteger(head.contentLength) && head.contentLength >= 0);
      // What follows the head never changes how it is read.
      assert.deepEqual(parseHead(bytes.subarray(0, head.bytes), headBytesMax), head);
    },
  },
  {
    name: "parseRoute()",
    seeds: [
      "/healthz",
      `/v1/artifacts/${id}/manifest`,
      `/v1/artifacts/${id}/pieces?ranges=0-4,7`,
      `/v1/artifacts/${id}/files/12`,
    ],
    run: (bytes) => {
      const route = parseRoute(Buffer.from(bytes).toString("latin1"));
      if (route.kind !== "health") assert.match(route.artifactId, /^[0-9a-f]{64}$/);
      if (route.kind === "file") assert.ok(Number.isSafeInteger(route.fileIndex));
    },
  },
  {
    name: "parseByteRange()",
    seeds: ["bytes=0-9", "bytes=-5", "bytes=990-", "items=1-2"],
    run: (bytes) => {
      const span = parseByteRange(Buffer.from(bytes).toString("latin1"), size);
      if (span === null) return;
      assert.ok(span.offset >= 0 && span.length > 0 && span.offset + span.length <= size);
    },
  },
];
