// SPDX-License-Identifier: Apache-2.0
// `relight artifact fetch`: installs what peers have for this node's caches and ends.

import { openAgent } from "../agent/main.ts";
import { fetchCaches } from "../agent/serve.ts";
import { codes } from "../errors.ts";
import { agentSettings, runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { terminalNarrator } from "./narrate.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "agent", "coordinator", "trust", "state", "log"],
  shortGroups: ["run"],
  run: async ({ config, environment, output, log, signal }) => {
    const agent = agentSettings(config);
    await using opened = await openAgent(agent, log);
    const parts = { ...opened, log, narrator: terminalNarrator(output) };
    const settings = { ...runSettings(config), isPublishing: false };
    const record = await fetchCaches(
      environment,
      { settings, parts, nodeId: agent.nodeId },
      signal,
    );
    const rows = record.caches.map(
      ({ family, root, state, code, reason, artifactId, fetched, fetchedBytes, alreadyThere }) => ({
        family,
        root,
        state,
        code,
        reason,
        artifactId,
        fetched,
        fetchedBytes,
        alreadyThere,
      }),
    );
    output.result({ caches: rows }, () =>
      formatTable([
        ["FAMILY", "STATE", "FETCHED", "THERE", "CODE"],
        ...rows.map((row) => [
          row.family,
          row.state,
          String(row.fetched),
          String(row.alreadyThere),
          row.code ?? "-",
        ]),
      ]),
    );
    const failure = record.code ?? rows.find((row) => row.state === "cold")?.code ?? null;
    return failure === null ? 0 : codes[failure].exit;
  },
});
