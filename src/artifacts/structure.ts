// SPDX-License-Identifier: Apache-2.0
// The form that a file must have whatever its family: what calls itself an ELF object or JSON is one.
// Checked in staging, before anything gets its final name.

import fs from "node:fs";
import path from "node:path";
import { MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";

const elfMagic = Buffer.from([0x7f, 0x45, 0x4c, 0x46]);
const jsonBytesMax = 64 * MiB;

/** @throws RelightError `structure_invalid` when a staged file is not what its name says. */
export function checkStructure(staging: string, relative: string): void {
  if (/\.(so|cubin|o)$/.test(relative)) checkElf(path.join(staging, relative), relative);
  else if (relative.endsWith(".json")) checkJson(path.join(staging, relative), relative);
}

function checkElf(file: string, relative: string): void {
  const head = Buffer.alloc(elfMagic.length);
  const handle = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW);
  try {
    fs.readSync(handle, head, 0, head.length, 0);
  } finally {
    fs.closeSync(handle);
  }
  if (!head.equals(elfMagic)) throw refuse(relative, "it is not an ELF object");
}

function checkJson(file: string, relative: string): void {
  if (fs.statSync(file).size > jsonBytesMax) throw refuse(relative, "its JSON is too large");
  try {
    JSON.parse(fs.readFileSync(file, "utf8"));
  } catch (cause) {
    throw refuse(relative, "it is not JSON", cause);
  }
}

function refuse(relative: string, reason: string, cause?: unknown): RelightError {
  return new RelightError("structure_invalid", `Cannot install "${relative}": ${reason}`, {
    cause,
  });
}
