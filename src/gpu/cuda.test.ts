// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { RelightError } from "../errors.ts";
import { CudaDriver } from "./cuda.ts";
import { cudaError } from "./cuda-errors.ts";
import { Libcuda } from "./functions.ts";

test("Libcuda.open() says device_absent when the driver's library is not there", () => {
  assert.throws(
    () => Libcuda.open("libcuda-of-nobody.so.1"),
    (error) => error instanceof RelightError && error.code === "device_absent",
  );
});

test("CudaDriver answers its first call by devices or by device_absent, and can be closed", async () => {
  await using driver = new CudaDriver();
  try {
    assert.ok((await driver.devices()).length > 0);
  } catch (error) {
    assert.ok(error instanceof RelightError);
    assert.equal(error.code, "device_absent");
  }
});

test("CudaDriver refuses every call after it was closed", async () => {
  const driver = new CudaDriver();
  await driver[Symbol.asyncDispose]();
  await driver[Symbol.asyncDispose]();
  await assert.rejects(
    async () => await driver.devices(),
    (error) => error instanceof RelightError && error.code === "handle_closed",
  );
});

test("cudaError() names call and result, and tells a lost GPU from a handle of somebody gone", () => {
  const cases = [
    ["cuMemAlloc_v2", 2, "device_memory"],
    ["cuModuleLoadData", 209, "device_unsupported"],
    ["cuStreamQuery", 700, "device_lost"],
    ["cuIpcOpenMemHandle_v2", 1, "device_handle_invalid"],
    ["cuMemImportFromShareableHandle", 999, "device_handle_invalid"],
    ["cuMemAlloc_v2", 1, "device_failed"],
    ["cuInit", 100, "device_absent"],
    ["cuLaunchKernel", 12_345, "device_failed"],
  ] as const;
  for (const [call, result, code] of cases) {
    const error = cudaError(call, result);
    assert.equal(error.code, code, `${call} ${result}`);
    assert.equal(error.details["call"], call);
    assert.equal(error.details["result"], result);
    assert.ok(error.message.startsWith(`Cannot ${call}: `));
  }
});
