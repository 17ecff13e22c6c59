// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { RelightError } from "../errors.ts";
import { chooseTransport } from "./choose.ts";

const all = { wanted: "auto", hasHandles: true, ncclMissing: null, httpMissing: null } as const;

test("chooseTransport() takes the fastest that both have, and says why not a faster one", () => {
  assert.deepEqual(chooseTransport(all), { transport: "cuda-ipc", reasons: [] });
  const apart = { ...all, hasHandles: false };
  assert.equal(chooseTransport(apart).transport, "nccl");
  const plain = chooseTransport({ ...apart, ncclMissing: "no library" });
  assert.equal(plain.transport, "http");
  assert.deepEqual(plain.reasons, [
    "cuda-ipc: the source is not on this machine",
    "nccl: no library",
  ]);
});

test("chooseTransport() takes nothing but what is demanded", () => {
  assert.equal(chooseTransport({ ...all, wanted: "http" }).transport, "http");
  const missing = { ...all, wanted: "nccl", ncclMissing: "no library" } as const;
  assert.throws(
    () => chooseTransport(missing),
    (error) =>
      error instanceof RelightError &&
      error.code === "transport_unavailable" &&
      error.message.endsWith("nccl: no library"),
  );
});
