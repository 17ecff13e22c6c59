// SPDX-License-Identifier: Apache-2.0
// `relight dev`: a coordinator with its memory store and an agent for this node's caches in one process,
// for trying Relight on one machine. Nothing is kept when it ends.

import { openAgent } from "../agent/main.ts";
import { serveCaches } from "../agent/serve.ts";
import { startCoordinator } from "../coordinator/main.ts";
import { agentSettings, runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { coordinatorTls } from "./fleet-settings.ts";
import { terminalNarrator } from "./narrate.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "run", "trust", "state", "log"],
  shortGroups: ["coordinator", "run"],
  run: async ({ config, environment, output, log, signal }) => {
    const tls = coordinatorTls(config);
    await using coordinator = await startCoordinator({
      ...(tls === undefined ? {} : { tls }),
      grpc: config["coordinator.listen"],
      http: config["coordinator.http_listen"],
      store: { kind: "memory" },
    });
    const agent = { ...agentSettings(config), coordinator: coordinator.grpcAddress };
    await using opened = await openAgent(agent, log);
    output.result(
      {
        grpc: coordinator.grpcAddress,
        http: coordinator.httpUrl,
        endpoint: opened.server.endpoint,
      },
      () =>
        `coordinator ${coordinator.grpcAddress}, ${coordinator.httpUrl ?? "-"}; agent ${opened.server.endpoint}`,
    );
    const parts = { ...opened, log, narrator: terminalNarrator(output) };
    const settings = { ...runSettings(config), isPublishing: true };
    await serveCaches(
      environment,
      { settings, parts, nodeId: agent.nodeId, isInstalling: false },
      signal,
    );
    return 0;
  },
});
