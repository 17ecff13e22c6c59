// SPDX-License-Identifier: Apache-2.0
// Files that name their cache's root. Triton's `__grp__*.json` lists the members of a kernel by
// absolute path (FileCacheManager.put_group, Triton 3.8), so under another root the kernel is a miss,
// and a forged list points the loader anywhere. Such a file travels in portable form: each path
// becomes a token and a relative path; at the target only paths of the same manifest are accepted.

import path from "node:path";
import { z } from "zod";
import { RelightError } from "../errors.ts";
import { unsafePath } from "./paths.ts";

const token = "relight-root:/";
const groupShape = z.strictObject({ child_paths: z.record(z.string(), z.string()) });

/** Triton's list of a kernel's members; other JSON of the caches holds no paths. */
export function isGroupFile(relativePath: string): boolean {
  const name = relativePath.slice(relativePath.lastIndexOf("/") + 1);
  return name.startsWith("__grp__") && name.endsWith(".json");
}

/**
 * The portable form of a group file that lies under `root`.
 * @throws RelightError `structure_invalid` when it is not a group, `path_unsafe` when it points outside.
 */
export function toPortable(text: Buffer, root: string): Buffer {
  const children = Object.entries(parseGroup(text).child_paths).map(([name, absolute]) => {
    const relative = path.relative(root, absolute);
    if (!path.isAbsolute(absolute) || unsafePath(relative) !== null) {
      throw new RelightError(
        "path_unsafe",
        `Cannot seal group: "${absolute}" lies outside "${root}"`,
      );
    }
    return [name, `${token}${relative}`];
  });
  return Buffer.from(JSON.stringify({ child_paths: Object.fromEntries(children) }));
}

/**
 * The group file for `root` from its portable form.
 * @param members the paths of the manifest that brings it
 * @throws RelightError `structure_invalid`, or `path_unsafe` when it names anything but a member.
 */
export function fromPortable(text: Buffer, root: string, members: ReadonlySet<string>): Buffer {
  const children = Object.entries(parseGroup(text).child_paths).map(([name, portable]) => {
    const relative = portable.startsWith(token) ? portable.slice(token.length) : null;
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

function parseGroup(text: Buffer): z.infer<typeof groupShape> {
  try {
    return groupShape.parse(JSON.parse(text.toString("utf8")));
  } catch (cause) {
    throw new RelightError(
      "structure_invalid",
      'Cannot read group: want {"child_paths": {name: path}}',
      { cause },
    );
  }
}
