// SPDX-License-Identifier: Apache-2.0
// `relight config show`: every setting, its value, its origin. Secrets are masked.

import { showConfig } from "../config/show.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["state", "coordinator", "agent", "run", "log"],
  run: async ({ loaded, output, configPath }) => {
    const settings = showConfig(loaded);
    output.result({ file: configPath, settings: settings.map((row) => ({ ...row })) }, () =>
      formatTable(settings.map((row) => [row.key, shown(row.value), row.from])),
    );
    return 0;
  },
});

function shown(value: string | readonly string[] | null): string {
  if (value === null || value.length === 0) return "-";
  return typeof value === "string" ? value : value.join(", ");
}
