// SPDX-License-Identifier: Apache-2.0
// `relight artifact list`: the caches of this node, what lies in them and what of it came from peers.

import { findCaches, readCache } from "../agent/local-caches.ts";
import { totalBytes } from "../artifacts/manifest.ts";
import { formatBytes } from "../core/units.ts";
import { runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "state"],
  shortGroups: ["run"],
  run: async ({ config, environment, output }) => {
    const rows = findCaches(environment, runSettings(config)).map((cache) => {
      const { seal, receipts } = readCache(cache, (error) => output.failure(error));
      return {
        family: cache.family.name,
        root: cache.root,
        artifactId: seal?.manifest.artifactId ?? null,
        files: seal?.files.length ?? 0,
        bytes: seal === null ? 0 : totalBytes(seal.manifest),
        skipped: seal?.skipped.length ?? 0,
        installed: receipts.reduce((sum, receipt) => sum + receipt.files.length, 0),
      };
    });
    output.result({ caches: rows }, () =>
      formatTable([
        ["FAMILY", "ARTIFACT", "FILES", "SIZE", "FROM PEERS", "LEFT OUT", "ROOT"],
        ...rows.map((row) => [
          row.family,
          row.artifactId?.slice(0, 12) ?? "-",
          String(row.files),
          formatBytes(row.bytes),
          String(row.installed),
          String(row.skipped),
          row.root,
        ]),
      ]),
    );
    return 0;
  },
});
