// SPDX-License-Identifier: Apache-2.0
// What a source says went wrong with it, as its reader must take it: that a source is out of GPU memory is
// no reason for the reader to give up, but to go elsewhere.

import { asRelightError, RelightError } from "../errors.ts";

/** Waits of this side that ended, not words of the other. */
const own: ReadonlySet<string> = new Set(["cancelled", "deadline_exceeded"]);

export function sourceFailure(name: string, cause: unknown): RelightError {
  const error = asRelightError(cause);
  if (error.facts.blame === "remote" || own.has(error.code)) return error;
  return new RelightError(
    "source_gone",
    `Cannot read from "${name}": it says ${error.code}, ${error.message}`,
    { details: { said: error.code }, cause: error },
  );
}
