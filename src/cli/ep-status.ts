// SPDX-License-Identifier: Apache-2.0
// `relight ep status [GROUP]`: who takes part, who may be deleted, and the operation under way.

import { defineCommand } from "./command.ts";
import { openEpClient } from "./ep-connect.ts";
import { epStatusJson, epStatusText } from "./ep-text.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  operands: [{ name: "GROUP", about: "Its name; all groups without one.", isOptional: true }],
  run: async ({ config, operands, output, signal }) => {
    using client = await openEpClient(config, signal);
    const [named] = operands;
    const names = named === undefined ? await client.groups() : [named];
    const groups = await Promise.all(names.map((name) => client.describe(name)));
    output.result({ groups: groups.map(epStatusJson) }, () =>
      groups.length === 0 ? "no groups" : groups.map(epStatusText).join("\n\n"),
    );
    return 0;
  },
});
