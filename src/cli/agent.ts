// SPDX-License-Identifier: Apache-2.0
// `relight agent`: a node's caches, taken from peers at the start and offered to them until it is stopped.

import { openAgent } from "../agent/main.ts";
import { serveCaches } from "../agent/serve.ts";
import { agentSettings, runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { openEpHost } from "./ep-connect.ts";
import { terminalNarrator } from "./narrate.ts";

export const command = defineCommand({
  settings: ["agent", "run", "weights", "coordinator", "trust", "state", "log"],
  shortGroups: ["agent", "run"],
  run: async ({ config, environment, output, log, signal }) => {
    const agent = agentSettings(config);
    const bound = log.with({ node: agent.nodeId });
    await using opened = await openAgent(agent, bound);
    output.result(
      { endpoint: opened.server.endpoint, node: agent.nodeId },
      () => `agent ${agent.nodeId} serves ${opened.server.endpoint}`,
    );
    using _ranks = await openEpHost(config, bound, signal);
    const parts = { ...opened, log: bound, narrator: terminalNarrator(output) };
    const settings = { ...runSettings(config), isPublishing: true };
    await serveCaches(
      environment,
      { settings, parts, nodeId: agent.nodeId, isInstalling: config["run.install"] },
      signal,
    );
    return 0;
  },
});
