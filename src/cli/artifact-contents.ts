// SPDX-License-Identifier: Apache-2.0
// `relight artifact contents`: every file of foreign code that lies in this node's caches, with who
// signed it and where it came from.

import { findCaches } from "../agent/local-caches.ts";
import { readReceipts } from "../artifacts/receipt.ts";
import { runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "state"],
  shortGroups: ["run"],
  run: async ({ config, environment, output }) => {
    const rows = findCaches(environment, runSettings(config)).flatMap(({ root }) =>
      readReceipts(root, (error) => output.failure(error)).flatMap((receipt) =>
        receipt.files.map(({ path, digest, size }) => ({
          family: receipt.family,
          path,
          size,
          digest,
          artifactId: receipt.artifactId,
          signers: (receipt.trust?.signers ?? []).map(({ uri, keyId }) => uri ?? keyId),
          policyVersion: receipt.trust?.policyVersion ?? null,
          sources: receipt.sources,
        })),
      ),
    );
    output.result({ files: rows }, () =>
      formatTable([
        ["FAMILY", "SIGNED BY", "ARTIFACT", "SIZE", "FROM", "FILE"],
        ...rows.map((row) => [
          row.family,
          row.signers.map((signer) => signer.slice(0, 40)).join(",") || "nobody",
          row.artifactId.slice(0, 12),
          String(row.size),
          row.sources[0] ?? "-",
          row.path,
        ]),
      ]),
    );
    return 0;
  },
});
