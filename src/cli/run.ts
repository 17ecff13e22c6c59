// SPDX-License-Identifier: Apache-2.0
// `relight run -- CMD`: starts an engine warm. CMD keeps its standard streams and its exit code.

import { openAgent } from "../agent/main.ts";
import { probeEngine, runReplica } from "../agent/run.ts";
import { agentSettings, runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { terminalNarrator } from "./narrate.ts";

export const command = defineCommand({
  settings: ["run", "weights", "agent", "coordinator", "trust", "state", "log"],
  shortGroups: ["run"],
  takesWords: true,
  handlesSignals: true,
  run: async ({ config, words, environment, output, log }) => {
    const agent = agentSettings(config);
    const bound = log.with({ node: agent.nodeId });
    const settings = runSettings(config);
    const probe = probeEngine(words, environment, settings);
    await using parts = await openAgent(agent, bound);
    const narrator = terminalNarrator(output);
    // Awaited here: the parts are closed when this scope ends.
    return await runReplica(words, environment, {
      settings,
      parts: { ...parts, log: bound, narrator },
      probe,
    });
  },
});
