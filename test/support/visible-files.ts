// SPDX-License-Identifier: Apache-2.0
// What an engine would see of a cache folder while or after something was installed into it.

import fs from "node:fs";
import path from "node:path";

/** Relative paths in order, without Relight's own folder; none where there is no folder. */
export function visibleFiles(root: string): string[] {
  if (!fs.existsSync(root)) return [];
  return fs
    .readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((item) => item.isFile() && !item.parentPath.includes(".relight"))
    .map((item) => path.relative(root, path.join(item.parentPath, item.name)))
    .sort();
}
