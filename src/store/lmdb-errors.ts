// SPDX-License-Identifier: Apache-2.0
// LMDB's and the disk's failures as rows of the error table. Codes are matched, never messages.

import { type Code, RelightError } from "../errors.ts";

// Of lmdb.h: negative numbers are LMDB's own, positive ones are errno.
const codeOf = new Map<unknown, Code>([
  [-30797, "store_corrupt"], // a page that should exist does not
  [-30796, "store_corrupt"], // a page of the wrong kind
  [-30794, "store_newer"], // another version of the file format
  [-30793, "store_corrupt"], // not an LMDB file
  [-30792, "disk_full"], // the map cannot grow
  [13, "disk_denied"],
  [20, "target_obstructed"],
  [28, "disk_full"],
  [30, "disk_read_only"],
  ["EACCES", "disk_denied"],
  ["EEXIST", "target_obstructed"],
  ["ENOTDIR", "target_obstructed"],
  ["ENOSPC", "disk_full"],
  ["EROFS", "disk_read_only"],
]);

export function fromLmdb(cause: unknown, action: string): RelightError {
  if (cause instanceof RelightError) return cause;
  const error = cause instanceof Error ? cause : new Error(String(cause));
  const code = "code" in error ? codeOf.get(error.code) : undefined;
  return new RelightError(code ?? "store_unavailable", `Cannot ${action}: ${error.message}`, {
    cause,
  });
}
