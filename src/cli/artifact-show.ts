// SPDX-License-Identifier: Apache-2.0
// `relight artifact show FAMILY`: every file that would be sealed, and what is left out with the reason.

import { findCaches, readCache } from "../agent/local-caches.ts";
import { RelightError } from "../errors.ts";
import { runSettings } from "./agent-settings.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "state"],
  shortGroups: ["run"],
  operands: [{ name: "FAMILY", about: "Its name, as `relight artifact list` shows it." }],
  run: async ({ config, environment, output, operands }) => {
    const cache = findCaches(environment, runSettings(config)).find(
      ({ family }) => family.name === operands[0],
    );
    if (cache === undefined)
      throw new RelightError("not_found", `Cannot find cache "${operands[0]}" on this node`);
    const { seal } = readCache(cache, (error) => output.failure(error));
    const files = seal?.manifest.files ?? [];
    const skipped = seal?.skipped ?? [];
    output.result(
      {
        family: cache.family.name,
        root: cache.root,
        artifactId: seal?.manifest.artifactId ?? null,
        files: files.map(({ path, mode, size, form, digest }) => ({
          path,
          mode,
          size,
          form,
          digest,
        })),
        skipped: skipped.map(({ path, reason }) => ({ path, reason })),
      },
      () =>
        formatTable([
          ...files.map((file) => [
            file.digest.slice(0, 20),
            String(file.size),
            file.form,
            file.path,
          ]),
          ...skipped.map((one) => ["left out", "-", one.reason, one.path]),
        ]),
    );
    return 0;
  },
});
