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

/** At opening the operator is there to read what the disk answered. */
export function openFailure(cause: unknown, action: string): RelightError {
  if (cause instanceof RelightError) return cause;
  return failure(codeOfError(cause) ?? "store_unavailable", action, cause);
}

/** In use, a disk that is full or broken is a store that does not answer. */
export function useFailure(cause: unknown, action: string): RelightError {
  if (cause instanceof RelightError) return cause;
  const code = codeOfError(cause);
  return failure(code?.startsWith("store_") ? code : "store_unavailable", action, cause);
}

function codeOfError(cause: unknown): Code | undefined {
  return cause instanceof Error && "code" in cause ? codeOf.get(cause.code) : undefined;
}

function failure(code: Code, action: string, cause: unknown): RelightError {
  const text = cause instanceof Error ? cause.message : String(cause);
  return new RelightError(code, `Cannot ${action}: ${text}`, { cause });
}
