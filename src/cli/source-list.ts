// SPDX-License-Identifier: Apache-2.0
// `relight source list`: what the coordinator offers, of every kind of client.

import { connectCoordinator } from "../agent/coordinator-client.ts";
import { openMembership } from "../agent/membership.ts";
import { choice, integer, text } from "../config/kinds.ts";
import { systemClock } from "../platform/clock.ts";
import { SourceStatus } from "../protocol/gen/p2p_pb.ts";
import { agentSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  flags: {
    status: choice(["ready", "initializing", "stale", "any"], {
      fallback: "ready",
      about: "Which to list.",
    }),
    model: text({ fallback: "", about: "Only of this model." }),
    limit: integer({
      fallback: "100",
      min: 1,
      max: 10_000,
      about: "How many to list, newest first.",
    }),
  },
  run: async ({ config, flags, output, signal }) => {
    const { nodeId, membership, trust, coordinator: configured } = agentSettings(config);
    const timeoutMs = config["agent.connect_timeout"];
    const joined = openMembership(membership, {
      ...trust,
      nodeId,
      coordinator: configured,
      timeoutMs,
      clock: systemClock,
    });
    await joined.join(signal);
    const { source, coordinator } = joined;
    await using client = connectCoordinator({
      address: coordinator,
      timeoutMs,
      ...(source === null ? {} : { tls: () => source.material }),
    });
    const instances = await client.listSources(
      {
        limit: flags.limit,
        ...(flags.status === "any" ? {} : { statusFilter: statuses[flags.status] }),
        ...(flags.model === "" ? {} : { modelNameFilter: flags.model }),
      },
      signal,
    );
    const rows = instances.map((one) => ({
      sourceId: one.mxSourceId,
      workerId: one.workerId,
      model: one.modelName,
      rank: one.workerRank,
      updatedAtMs: Number(one.updatedAt),
    }));
    output.result({ sources: rows }, () =>
      formatTable([
        ["SOURCE", "WORKER", "MODEL", "RANK", "UPDATED"],
        ...rows.map((row) => [
          row.sourceId,
          row.workerId,
          row.model,
          String(row.rank),
          new Date(row.updatedAtMs).toISOString(),
        ]),
      ]),
    );
    return 0;
  },
});

const statuses = {
  ready: SourceStatus.READY,
  initializing: SourceStatus.INITIALIZING,
  stale: SourceStatus.STALE,
} as const;
