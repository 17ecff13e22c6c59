// SPDX-License-Identifier: Apache-2.0
// The agent's stay on a GPU: a context for one transfer and nothing longer, because it costs memory that
// the engine planned for. Everything opened in it goes with it.

import { RelightError } from "../errors.ts";
import type {
  ContextHandle,
  DevicePtr,
  GpuDevice,
  GpuDriver,
  MemoryHandle,
} from "../gpu/driver.ts";

export interface Stay {
  readonly context: ContextHandle;
  readonly device: GpuDevice;
  /** GPU memory that the stay itself takes; `null` when it could not be read. */
  readonly costBytes: number | null;
  /** Maps one of the handles at its first use. */
  readonly addressOf: (handles: readonly MemoryHandle[], index: number) => Promise<DevicePtr>;
}

/** @throws device_unsupported when this process does not see the GPU with that UUID */
export async function stayOnDevice<Result>(
  driver: GpuDriver,
  uuid: string,
  act: (stay: Stay) => Promise<Result>,
): Promise<Result> {
  const device = (await driver.devices()).find((one) => one.uuid === uuid);
  if (device === undefined) {
    throw new RelightError(
      "device_unsupported",
      `Cannot use GPU "${uuid}": this process does not see it`,
      { details: { uuid } },
    );
  }
  const { handle, costBytes } = await driver.openContext(device.ordinal);
  try {
    const addressOf = mapOnce(driver, handle);
    return await act({ context: handle, device, costBytes, addressOf });
  } finally {
    await driver.close(handle);
  }
}

function mapOnce(driver: GpuDriver, context: ContextHandle): Stay["addressOf"] {
  const mapped = new Map<MemoryHandle, Promise<DevicePtr>>();
  return (handles, index) => {
    const handle = handles[index];
    if (handle === undefined) {
      const message = `Cannot map allocation ${index}: the other side sent ${handles.length} handles`;
      return Promise.reject(new RelightError("source_protocol", message));
    }
    const known = mapped.get(handle);
    if (known !== undefined) return known;
    const address = driver.importMemory(context, handle).then((memory) => memory.address);
    mapped.set(handle, address);
    return address;
  };
}
