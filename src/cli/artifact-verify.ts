// SPDX-License-Identifier: Apache-2.0
// `relight artifact verify`: reads every installed file anew and compares it with its receipt.

import { findCaches, verifyInstalled } from "../agent/local-caches.ts";
import { readReceipts } from "../artifacts/receipt.ts";
import { count } from "../core/units.ts";
import { codes } from "../errors.ts";
import { runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "state"],
  shortGroups: ["run"],
  run: async ({ config, environment, output }) => {
    const rows = findCaches(environment, runSettings(config)).flatMap(({ family, root }) =>
      readReceipts(root, (error) => output.failure(error)).flatMap((receipt) =>
        verifyInstalled(root, receipt).map(({ path, state }) => ({
          family: family.name,
          path,
          state,
          sources: receipt.sources,
        })),
      ),
    );
    const wrong = rows.filter((row) => row.state !== "ok");
    output.result(
      {
        verified: rows.length,
        wrong: wrong.map(({ family, path, state }) => ({ family, path, state })),
      },
      () =>
        [
          `${count(rows.length, "installed file")}, ${wrong.length} changed or gone`,
          formatTable(wrong.map((row) => [row.state, row.family, row.path])),
        ].join("\n"),
    );
    return wrong.length === 0 ? 0 : codes.receipt_invalid.exit;
  },
});
