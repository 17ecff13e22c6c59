// SPDX-License-Identifier: Apache-2.0
// The one place where errors of Node's file calls become ours. Codes are matched, never messages.

import { type Code, RelightError } from "../errors.ts";

const byErrno: Readonly<Record<string, Code>> = {
  ENOSPC: "disk_full",
  EDQUOT: "disk_full",
  EROFS: "disk_read_only",
  EACCES: "disk_denied",
  EPERM: "disk_denied",
  ENOTDIR: "target_obstructed",
  EISDIR: "target_obstructed",
  ELOOP: "target_obstructed",
  ENOENT: "not_found",
  EADDRINUSE: "port_in_use",
};

/** A RelightError for what a file call threw; an error that is ours already stays itself. */
export function fromNodeError(error: unknown, action: string): RelightError {
  if (error instanceof RelightError) return error;
  const errno = errnoOf(error);
  return new RelightError(
    byErrno[errno] ?? "disk_failed",
    `Cannot ${action}: ${errno || String(error)}`,
    {
      details: { errno },
      cause: error,
    },
  );
}

/** "ENOENT" and the like; empty when the error carries none. */
export function errnoOf(error: unknown): string {
  return error instanceof Error && "code" in error && typeof error.code === "string"
    ? error.code
    : "";
}
