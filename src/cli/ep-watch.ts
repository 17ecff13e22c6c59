// SPDX-License-Identifier: Apache-2.0
// `relight ep watch GROUP`: its status at every change, until stopped.

import { systemClock } from "../platform/clock.ts";
import { defineCommand } from "./command.ts";
import { openEpClient } from "./ep-connect.ts";
import { epStatusJson, epStatusText } from "./ep-text.ts";

const everyMs = 250;

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  operands: [{ name: "GROUP", about: "Name of the group." }],
  run: async ({ config, operands, output, signal }) => {
    using client = await openEpClient(config, signal);
    const [group = ""] = operands;
    for (let seen = -1; !signal.aborted; ) {
      const status = await client.describe(group);
      if (status.generation !== seen)
        output.result(epStatusJson(status), () => epStatusText(status));
      seen = status.generation;
      await systemClock.sleep(everyMs, signal).catch(() => {
        // Stopped: the loop sees it.
      });
    }
    return 0;
  },
});
