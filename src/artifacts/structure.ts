// SPDX-License-Identifier: Apache-2.0
// Holds a staged file to the form that its name promises (src/core/structure.ts), before anything gets
// its final name.

import fs from "node:fs";
import path from "node:path";
import { breaksForm, formBytes, jsonBytesMax, namedForm } from "../core/structure.ts";
import { RelightError } from "../errors.ts";

/** @throws RelightError `structure_invalid` when a staged file is not what its name says. */
export function checkStructure(staging: string, relative: string): void {
  const form = namedForm(relative);
  if (form === null) return;
  const handle = fs.openSync(
    path.join(staging, relative),
    fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW,
  );
  try {
    const { size } = fs.fstatSync(handle);
    if (form === "json" && size > jsonBytesMax) throw refuse(relative, "its JSON is too large");
    const bytes = Buffer.alloc(formBytes(form, size));
    const length = fs.readSync(handle, bytes, 0, bytes.length, 0);
    const reason = breaksForm(form, bytes.subarray(0, length));
    if (reason !== null) throw refuse(relative, reason);
  } finally {
    fs.closeSync(handle);
  }
}

function refuse(relative: string, reason: string): RelightError {
  return new RelightError("structure_invalid", `Cannot install "${relative}": ${reason}`);
}
