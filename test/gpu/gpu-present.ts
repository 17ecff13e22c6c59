// SPDX-License-Identifier: Apache-2.0
// Why GPU tests cannot run here, if they cannot: the words that a skip says.

import { RelightError } from "../../src/errors.ts";
import { CudaDriver } from "../../src/gpu/cuda.ts";

const library = process.env["RELIGHT_WEIGHTS_NCCL_LIBRARY"];

/** Where libnccl is, for the driver; often only torch's wheels have it. */
export const nccl = library === undefined ? {} : { ncclLibrary: library };

/** @returns false when two GPUs can be paired, else the reason in words. */
export async function ncclMissing(): Promise<string | false> {
  const missing = await gpuMissing(2);
  if (missing !== false) return missing;
  await using driver = new CudaDriver(nccl);
  return await driver.pairId().then(
    () => false,
    (error: Error) => error.message,
  );
}

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
