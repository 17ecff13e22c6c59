// SPDX-License-Identifier: Apache-2.0
// `relight artifact publish`: offers the caches of this node as they are until it is stopped.

import { openAgent } from "../agent/main.ts";
import { serveCaches } from "../agent/serve.ts";
import { agentSettings, runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { terminalNarrator } from "./narrate.ts";

export const command = defineCommand({
  settings: ["run", "agent", "coordinator", "trust", "state", "log"],
  shortGroups: ["run"],
  run: async ({ config, environment, output, log, signal }) => {
    const agent = agentSettings(config);
    await using opened = await openAgent(agent, log);
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
