// SPDX-License-Identifier: Apache-2.0
// `relight coordinator`: runs until it is told to stop.

import { startCoordinator } from "../coordinator/main.ts";
import { defineCommand } from "./command.ts";

export const command = defineCommand({
  settings: ["coordinator", "state", "log"],
  run: async ({ config, output, signal }) => {
    await using coordinator = await startCoordinator({
      grpc: config["coordinator.listen"],
      store: { kind: "memory" },
    });
    output.result(
      { grpc: coordinator.grpcAddress },
      () => `coordinator: gRPC on ${coordinator.grpcAddress}`,
    );
    await new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    return 0;
  },
});
