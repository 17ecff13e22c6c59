// SPDX-License-Identifier: Apache-2.0
// Holds a file on disk to the form that its name promises (src/core/structure.ts): the target's before
// anything gets its final name, a checkpoint's before it is offered.

import fs from "node:fs";
import path from "node:path";
import { breaksForm, firstBytes, formBytes, jsonBytesMax, namedForm } from "../core/structure.ts";
import { RelightError } from "../errors.ts";
import { type Family, isOfFamily } from "./family.ts";
import type { Manifest } from "./manifest.ts";

/** @throws RelightError `structure_invalid` when a staged file is not what its name says. */
export function checkStructure(staging: string, relative: string): void {
  const reason = structureProblem(path.join(staging, relative), relative);
  if (reason === null) return;
  throw new RelightError("structure_invalid", `Cannot install "${relative}": ${reason}`);
}

/**
 * Before anything is fetched: no file that the family's compiler would not write.
 * @throws RelightError `structure_invalid`.
 */
export function checkSuffixes(family: Family, { files }: Manifest): void {
  const foreign = files.find((file) => !isOfFamily(family, file.path));
  if (foreign === undefined) return;
  throw new RelightError(
    "structure_invalid",
    `Cannot accept "${foreign.path}" in a cache of ${family.name}: want one of ${family.suffixes?.join(", ")}`,
  );
}

/**
 * Why the file is not what `name` promises; null when it is. A link is not followed.
 * @throws what the disk answered
 */
export function structureProblem(file: string, name: string): string | null {
  const form = namedForm(name);
  if (form === null) return null;
  const handle = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW);
  try {
    const { size } = fs.fstatSync(handle);
    if (form === "json" && size > jsonBytesMax) return "its JSON is too large";
    const first = readHead(handle, Math.min(size, firstBytes));
    return breaksForm(form, readHead(handle, formBytes(form, first, size)), size);
  } finally {
    fs.closeSync(handle);
  }
}

function readHead(handle: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  return bytes.subarray(0, fs.readSync(handle, bytes, 0, length, 0));
}
