// SPDX-License-Identifier: Apache-2.0
// `relight config check`: the loader that every command runs, and nothing else. It has run by the time
// this command starts; what is wrong was reported then.

import { defineCommand } from "./command.ts";

export const command = defineCommand({
  settings: ["state", "coordinator", "agent", "run", "log"],
  run: async ({ loaded, output, configPath }) => {
    const origins = Object.values(loaded.origins);
    const given = origins.filter((origin) => origin.from !== "default").length;
    output.result({ ok: true, file: configPath, settings: origins.length, given }, () => {
      const file = configPath === null ? "no configuration file" : configPath;
      return `ok: ${origins.length} settings, ${given} given, ${file}`;
    });
    return 0;
  },
});
