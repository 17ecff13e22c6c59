// SPDX-License-Identifier: Apache-2.0
// `relight artifact verify`: reads every installed file anew and compares it with its receipt, and asks
// the policy of today about each receipt.

import { findCaches, verifyInstalled } from "../agent/local-caches.ts";
import { openTrust } from "../agent/open-trust.ts";
import { readReceipts } from "../artifacts/receipt.ts";
import { count } from "../core/units.ts";
import { codes } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { runSettings, trustSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "trust", "state"],
  shortGroups: ["run"],
  run: async ({ config, environment, output, log, signal }) => {
    const settings = runSettings(config);
    const trust = await openTrust(trustSettings(config), {
      nodeId: settings.nodeId,
      clock: systemClock,
      log,
      signal,
    });
    const installations = findCaches(environment, settings).flatMap(({ family, root }) =>
      readReceipts(root, (error) => output.failure(error)).map((receipt) => ({
        family: family.name,
        artifactId: receipt.artifactId,
        signers: (receipt.trust?.signers ?? []).map(({ uri, keyId }) => uri ?? keyId),
        refusal: trust.recheck(receipt),
        files: verifyInstalled(root, receipt),
      })),
    );
    const refused = installations.flatMap(({ family, artifactId, refusal }) =>
      refusal === null ? [] : [{ family, artifactId, code: refusal.code, reason: refusal.reason }],
    );
    const wrong = installations.flatMap(({ family, files }) =>
      files.filter(({ state }) => state !== "ok").map((file) => ({ family, ...file })),
    );
    const verified = installations.reduce((sum, { files }) => sum + files.length, 0);
    output.result(
      {
        verified,
        wrong: wrong.map(({ family, path, state }) => ({ family, path, state })),
        installations: installations.map(({ family, artifactId, signers, refusal }) => ({
          family,
          artifactId,
          signers,
          code: refusal?.code ?? null,
        })),
      },
      () =>
        [
          `${count(verified, "installed file")}, ${wrong.length} changed or gone; ${count(installations.length, "installation")}, ${refused.length} no longer allowed`,
          formatTable(wrong.map((row) => [row.state, row.family, row.path])),
          formatTable(refused.map((row) => [row.code, row.family, row.artifactId, row.reason])),
        ].join("\n"),
    );
    const [first] = refused;
    if (first !== undefined) return codes[first.code].exit;
    return wrong.length === 0 ? 0 : codes.receipt_invalid.exit;
  },
});
