// SPDX-License-Identifier: Apache-2.0
// Taking an installation back: what it placed and is still there, then its receipt. What the engine
// wrote since under the same name is the engine's own and stays.

import fs from "node:fs";
import path from "node:path";
import { fromNodeError } from "../platform/node-errors.ts";
import { hashBytes, hashPath } from "./hash-file.ts";
import { toPortable } from "./rebase.ts";
import { type Receipt, removeReceipt } from "./receipt.ts";

type Installed = Receipt["files"][number];

/**
 * Removes an installation, its receipt last: after a crash in between the next start finds the receipt
 * and goes on. Under the cache's lock.
 * @returns how many files were removed. @throws RelightError what the disk answered.
 */
export function uninstall(root: string, receipt: Receipt): number {
  let removed = 0;
  for (const file of receipt.files) {
    const full = path.join(root, file.path);
    if (!isInside(root, full) || !isAsInstalled(full, root, file)) continue;
    try {
      fs.rmSync(full, { force: true });
    } catch (error) {
      throw fromNodeError(error, `remove "${full}"`);
    }
    removed++;
  }
  removeReceipt(root, receipt);
  return removed;
}

/** The digest of an installed file in the form that travelled; empty when it has that form no more. */
export function installedDigest(full: string, root: string, file: Pick<Installed, "form">): string {
  try {
    if (file.form === "plain") return hashPath(full)?.digest ?? "";
    const portable = toPortable(fs.readFileSync(full), { root, path: path.relative(root, full) });
    return portable === null ? "" : hashBytes(portable).digest;
  } catch {
    // It cannot be read, or is no longer the kind of file that it was installed as.
    return "";
  }
}

/** A folder that became a link meanwhile must not lead us to somebody else's files. */
function isInside(root: string, full: string): boolean {
  try {
    return (
      fs.realpathSync(path.dirname(full)) ===
      path.join(fs.realpathSync(root), path.relative(root, path.dirname(full)))
    );
  } catch {
    // Its folder is gone, and the file with it.
    return false;
  }
}

/** By its time or, should that have been changed, by its bytes. */
function isAsInstalled(full: string, root: string, file: Installed): boolean {
  const stat = fs.lstatSync(full, { throwIfNoEntry: false });
  if (!stat?.isFile()) return false;
  return stat.mtimeMs === file.mtimeMs || installedDigest(full, root, file) === file.digest;
}
