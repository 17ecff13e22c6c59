// SPDX-License-Identifier: Apache-2.0
// `relight ep abort GROUP OPERATION`: back to what was, while it is not committed.

import { defineCommand } from "./command.ts";
import { openEpClient } from "./ep-connect.ts";
import { epStatusJson, epStatusText } from "./ep-text.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  operands: [
    { name: "GROUP", about: "Name of the group." },
    { name: "OPERATION", about: "Its id, as `relight ep status` shows it." },
  ],
  run: async ({ config, operands, output, signal }) => {
    using client = await openEpClient(config, signal);
    const [group = "", operationId = ""] = operands;
    const status = await client.abort({ group, operationId });
    output.result(epStatusJson(status), () => epStatusText(status));
    return 0;
  },
});
