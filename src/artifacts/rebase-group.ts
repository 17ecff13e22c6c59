// SPDX-License-Identifier: Apache-2.0
// Triton's `__grp__*.json` lists the members of a kernel by absolute path (FileCacheManager.put_group,
// Triton 3.6 to 3.8), so under another root the kernel is a miss, and a forged list points the loader
// anywhere. In portable form each path is a token and a relative path; at the target only files of the
// same manifest are accepted.

import path from "node:path";
import { z } from "zod";
import { RelightError } from "../errors.ts";
import { unsafePath } from "./paths.ts";
import { rootToken } from "./rebase-token.ts";

const groupShape = z.strictObject({ child_paths: z.record(z.string(), z.string()) });

/** Triton's list of a kernel's members; other JSON of the caches holds no paths. */
export function isGroupFile(relativePath: string): boolean {
  const name = relativePath.slice(relativePath.lastIndexOf("/") + 1);
  return name.startsWith("__grp__") && name.endsWith(".json");
}

/** @throws RelightError `structure_invalid` when it is not a group, `path_unsafe` when it points outside. */
export function groupToPortable(text: Buffer, root: string): Buffer {
  const children = Object.entries(parseGroup(text)).map(([name, absolute]) => {
    const relative = path.relative(root, absolute);
    if (!path.isAbsolute(absolute) || unsafePath(relative) !== null) {
      throw new RelightError(
        "path_unsafe",
        `Cannot seal group: "${absolute}" lies outside "${root}"`,
      );
    }
    return [name, `${rootToken}${relative}`];
  });
  return Buffer.from(JSON.stringify({ child_paths: Object.fromEntries(children) }));
}

/**
 * @param members the paths of the manifest that brings it
 * @throws RelightError `structure_invalid`, or `path_unsafe` when it names anything but a member.
 */
export function groupFromPortable(
  text: Buffer,
  root: string,
  members: ReadonlySet<string>,
): Buffer {
  const children = Object.entries(parseGroup(text)).map(([name, portable]) => {
    const relative = relativeOf(portable);
    if (relative === null || unsafePath(relative) !== null || !members.has(relative)) {
      throw new RelightError(
        "path_unsafe",
        `Cannot install group: ${JSON.stringify(portable.slice(0, 200))} is not a file of its artifact`,
      );
    }
    return [name, path.join(root, relative)];
  });
  return Buffer.from(JSON.stringify({ child_paths: Object.fromEntries(children) }));
}

/** The relative paths that a portable group lists. @throws RelightError `structure_invalid`. */
export function groupMembers(portable: Buffer): string[] {
  return Object.values(parseGroup(portable)).map((child) => relativeOf(child) ?? child);
}

function relativeOf(portable: string): string | null {
  return portable.startsWith(rootToken) ? portable.slice(rootToken.length) : null;
}

function parseGroup(text: Buffer): Record<string, string> {
  try {
    return groupShape.parse(JSON.parse(text.toString("utf8"))).child_paths;
  } catch (cause) {
    throw new RelightError(
      "structure_invalid",
      'Cannot read group: want {"child_paths": {name: path}}',
      { cause },
    );
  }
}
