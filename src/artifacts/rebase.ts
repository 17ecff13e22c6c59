// SPDX-License-Identifier: Apache-2.0
// Files that name their cache's root, and are useless or worse under another one. They travel in
// portable form, a token in place of the root, and get the target's root when they are installed. Only
// paths where the known format has a path are touched (rebase-group.ts, rebase-pickle.ts); what they
// may name is checked. docs/adr/0004-rebase.md says what binds the root and what was measured.

import { groupFromPortable, groupToPortable, isGroupFile } from "./rebase-group.ts";
import { graphFromPortable, graphToPortable, isGraphEntry } from "./rebase-pickle.ts";

/** True for a file of a format that may name the root. */
export function isRootedFile(relativePath: string): boolean {
  return isGroupFile(relativePath) || isGraphEntry(relativePath);
}

/** Where a file lies: `path` is relative to `root`. */
export interface RootedAt {
  readonly root: string;
  readonly path: string;
}

/**
 * The portable form of a file; null when it names no root and travels as it is.
 * @throws RelightError `structure_invalid` when a group is none, `path_unsafe` when it points outside.
 */
export function toPortable(bytes: Buffer, at: RootedAt): Buffer | null {
  return isGroupFile(at.path) ? groupToPortable(bytes, at.root) : graphToPortable(bytes, at);
}

/**
 * The file for the target's root from its portable form.
 * @param members the paths of the manifest that brings it
 * @throws RelightError `structure_invalid` for a form that cannot be read or a file of no rooted format,
 * `path_unsafe` when it names what it must not.
 */
export function fromPortable(bytes: Buffer, at: RootedAt, members: ReadonlySet<string>): Buffer {
  return isGraphEntry(at.path)
    ? graphFromPortable(bytes, at)
    : groupFromPortable(bytes, at.root, members);
}
