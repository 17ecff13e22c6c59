// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Code, RelightError } from "../errors.ts";
import { callPath, parseWeightRoute, rangesMax, readPath } from "./weights-http-messages.ts";

const token = "0123456789abcdef".repeat(2);

function refuses(method: string, url: string, code: Code): void {
  assert.throws(
    () => parseWeightRoute(method, url),
    (error) => error instanceof RelightError && error.code === code,
    url.slice(0, 100),
  );
}

test("parseWeightRoute() gives back the ranges that readPath() wrote, and the arguments of callPath()", () => {
  const ranges = [
    { allocation: 0, offsetBytes: 0, bytes: 1 },
    { allocation: 99_999, offsetBytes: 2 ** 44, bytes: 2 ** 23 },
  ];
  const read = parseWeightRoute("GET", readPath(token, ranges));
  assert.deepEqual(read, { kind: "read", token, ranges });
  const args = JSON.stringify({ key: "target tp0/1 pp0/1 ep0/1", odd: "&#?%ü" });
  const call = parseWeightRoute("POST", callPath("offer", args));
  assert.deepEqual(call, { kind: "call", op: "offer", args });
});

test("parseWeightRoute() refuses ranges that are no ranges", () => {
  for (const ranges of [
    "",
    "1.2",
    "1.2.0",
    "1.2.3.4",
    "1..3",
    "1.2.3,",
    "01.2.99999999999999999",
  ]) {
    refuses("GET", `/v1/weights/read/${token}?ranges=${ranges}`, "request_invalid");
  }
  const many = Array(rangesMax + 1)
    .fill("1.2.3")
    .join(",");
  refuses("GET", `/v1/weights/read/${token}?ranges=${many}`, "request_invalid");
  refuses("POST", "/v1/weights/call/offer?args=%", "request_invalid");
});

test("parseWeightRoute() knows no other path, token or method", () => {
  const url = `/v1/weights/read/${token}?ranges=1.2.3`;
  refuses("POST", url, "not_found");
  refuses("GET", url.toUpperCase(), "not_found");
  refuses("GET", url.replace(token, token.slice(1)), "not_found");
  refuses("GET", `/x${url}`, "not_found");
  refuses("GET", `${url}&more=1`, "not_found");
  refuses("GET", "/v1/weights/call/offer?args={}", "not_found");
  refuses("POST", "/v1/weights/call/../offer?args={}", "not_found");
});
