// SPDX-License-Identifier: Apache-2.0
// Why GPU tests cannot run here, if they cannot. A skip says it; where a GPU is required, it fails.

import { RelightError } from "../../src/errors.ts";
import { CudaDriver } from "../../src/gpu/cuda.ts";

/** @returns false when `count` GPUs are there, else the reason in words. */
export async function gpuMissing(count: number): Promise<string | false> {
  const reason = await missing(count);
  if (reason !== false && process.env["RELIGHT_TEST_REQUIRE_GPU"] === "true") {
    throw new Error(`A GPU is required: ${reason}`);
  }
  return reason;
}

async function missing(count: number): Promise<string | false> {
  await using driver = new CudaDriver();
  try {
    const devices = await driver.devices();
    return devices.length >= count ? false : `${devices.length} GPUs here, ${count} needed`;
  } catch (error) {
    if (error instanceof RelightError && error.code === "device_absent") return error.message;
    throw error;
  }
}
