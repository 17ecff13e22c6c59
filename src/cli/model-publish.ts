// SPDX-License-Identifier: Apache-2.0
// `relight model publish DIR`: offers a checkpoint as it lies there until it is stopped.

import fs from "node:fs";
import path from "node:path";
import { totalBytes } from "../artifacts/manifest.ts";
import { count, formatBytes } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { defineCommand } from "./command.ts";
import { modelFlags, modelGroups, openModelFolder } from "./model-folder.ts";

export const command = defineCommand({
  settings: modelGroups,
  flags: modelFlags,
  operands: [{ name: "DIR", about: "The checkpoint's folder." }],
  run: async (context) => {
    const { output, signal } = context;
    const folder = path.resolve(context.workingDirectory, context.operands[0] ?? "");
    if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory())
      throw new RelightError("not_found", `Cannot publish "${folder}": there is no such folder`);
    const options = { folder, rank: null, budgetMs: 0, isPublishing: true };
    await using opened = await openModelFolder(context, options);
    const { root, model, revision, node } = opened;
    const seal = await node.seal(signal);
    if (seal === null)
      throw new RelightError("seal_empty", `Cannot publish "${root}": it is empty`);
    const { manifest, skipped } = seal;
    const bytes = totalBytes(manifest);
    output.result(
      {
        model,
        revision,
        root,
        artifactId: manifest.artifactId,
        files: manifest.files.length,
        bytes,
        leftOut: skipped.map(({ path: name, reason }) => ({ path: name, reason })),
      },
      () =>
        [
          `${model}${revision === "" ? "" : ` at ${revision}`}: ${count(manifest.files.length, "file")}, ${formatBytes(bytes)}`,
          ...skipped.map(({ path: name, reason }) => `left out: ${name}: ${reason}`),
        ].join("\n"),
    );
    await node.publish(signal);
    return 0;
  },
});
