// SPDX-License-Identifier: Apache-2.0
// What a rank of an expert group needs of its machine, opened when it is needed: all load the FFI.

import type { WindowExchange } from "../elastic/rank/device.ts";
import type { OpenMembership } from "../elastic/session.ts";
import type { GpuDriver } from "../gpu/driver.ts";

/** This machine's GPUs. Nothing touches them before the first call of the driver. */
export async function openGpus(): Promise<GpuDriver> {
  const { CudaDriver } = await import("../gpu/cuda.ts");
  return new CudaDriver();
}

/**
 * The socket by which a rank hands its window to peers: for processes of this user, until disposed.
 * @throws port_in_use, request_invalid (the path is too long)
 */
export async function openWindows(path: string): Promise<WindowExchange & Disposable> {
  const { WindowSocket } = await import("../transport/window-exchange.ts");
  return new WindowSocket(path);
}

/** Membership through the agent that listens at `socketPath` (`agent.ep_socket`). */
export function agentMembership(socketPath: string): OpenMembership {
  return async (request, signal) => {
    const { openAgentMembership } = await import("./ep-session.ts");
    return await openAgentMembership(socketPath, request, signal);
  };
}
