// SPDX-License-Identifier: Apache-2.0
// `relight boot list`: this node's starts, newest first.

import { readBoots } from "../agent/boot-store.ts";
import { firstCodeOf, outcomeOf } from "../agent/ledger.ts";
import { integer } from "../config/kinds.ts";
import { formatMs } from "../core/units.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["state"],
  flags: { limit: integer({ fallback: "20", min: 1, max: 200, about: "How many to list." }) },
  run: async ({ config, flags, output }) => {
    const { boots, unreadable } = readBoots(config["state.dir"], flags.limit);
    const rows = boots.map((boot) => ({
      bootId: boot.bootId,
      startedAtMs: boot.startedAtMs,
      nodeId: boot.nodeId,
      model: boot.model,
      outcome: outcomeOf(boot),
      healthyMs: boot.healthyMs,
      code: firstCodeOf(boot),
    }));
    if (unreadable > 0) output.note(`${unreadable} records cannot be read and are left out`);
    output.result({ boots: rows, unreadable }, () =>
      formatTable([
        ["BOOT", "STARTED", "MODEL", "OUTCOME", "HEALTHY", "CODE"],
        ...rows.map((row) => [
          row.bootId,
          new Date(row.startedAtMs).toISOString().slice(0, 19),
          row.model || "-",
          row.outcome,
          row.healthyMs === null ? "-" : formatMs(row.healthyMs),
          row.code ?? "-",
        ]),
      ]),
    );
    return 0;
  },
});
