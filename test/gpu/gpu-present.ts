// SPDX-License-Identifier: Apache-2.0
// Why GPU tests cannot run here, if they cannot: the words that a skip says.

import { RelightError } from "../../src/errors.ts";
import { CudaDriver } from "../../src/gpu/cuda.ts";

/** @returns false when `count` GPUs are there, else the reason in words. */
export async function gpuMissing(count: number): Promise<string | false> {
  await using driver = new CudaDriver();
  try {
    const devices = await driver.devices();
    return devices.length >= count ? false : `${devices.length} GPUs here, ${count} needed`;
  } catch (error) {
    if (error instanceof RelightError && error.code === "device_absent") return error.message;
    throw error;
  }
}
