// SPDX-License-Identifier: Apache-2.0
// Whatever JSON a mutated input still is, in canonical spelling: so that a fuzzer that signs it reaches
// the checks behind signature and spelling.

import { canonicalJson, type Json } from "../../src/core/canonical-json.ts";
import { InvariantError, RelightError } from "../../src/errors.ts";

/** @throws RelightError `request_invalid` for bytes that are no JSON or hold a number we never write. */
export function canonicalBytes(bytes: Uint8Array): Buffer {
  try {
    return Buffer.from(canonicalJson(JSON.parse(Buffer.from(bytes).toString("utf8")) as Json));
  } catch (cause) {
    if (!(cause instanceof SyntaxError || cause instanceof InvariantError)) throw cause;
    throw new RelightError("request_invalid", "Cannot spell input: it is no JSON of ours", {
      cause,
    });
  }
}
